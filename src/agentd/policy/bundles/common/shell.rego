# Commands and code. What a command would do is not guessed from its words: there are too many ways
# to say the same. What it can do is for the sandbox's wall, limits and network.
package agentd

import rego.v1

deny contains concat("", ["shell.off: ", input.capability.name, " is off"]) if {
	data.policy.shell == "deny"
	kind == "code"
}

approve contains concat("", ["shell.approve: ", input.capability.name, " wants an approval unless an admin asks"]) if {
	data.policy.shell == "approve"
	kind == "code"
	not admin
}
