# Commands and code. What a command would do is not guessed from its words: there are too many ways
# to say the same. What it can do is for the sandbox's wall, limits and network.
package agentd

import rego.v1

deny contains concat("", ["shell.off: ", name, " is off"]) if {
	kind == "code"
	data.policy.shell == "deny"
}

approve contains concat("", ["shell.approve: ", name, " wants an approval unless an admin asks"]) if {
	kind == "code"
	data.policy.shell == "approve"
	not admin
}
