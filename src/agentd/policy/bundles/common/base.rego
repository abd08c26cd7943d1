# The decision: allowed where something grants it and nothing denies it. The other modules add to
# grant, deny and approve, each a set of "rule: why" texts. Written for speed, as this is on every
# call's way: a rule is evaluated once, and what rarely holds is asked first.
package agentd

import rego.v1

decision := {"allow": false, "reasons": deny} if {
	deny != set()
} else := {"allow": true, "reasons": grant | approve, "obligations": obligations} if {
	grant != set()
} else := {"allow": false, "reasons": ["base.default: nothing grants it"]}

name := input.capability.name

# "read", "write", "code", "network" or "sandbox"; undefined for what third parties brought.
kind := data.calls[name].kind

obligations := {"approve": approval} if {
	walless
} else := {
	"level": data.policy.level,
	"limits": data.policy.limits,
	"no_network": no_network,
	"approve": approval,
}

approval if {
	approve != set()
} else := false

# What acts in the daemon itself, and makes no sandbox, has no wall to oblige.
walless if {
	input.capability.needs.sandbox == false
	not startswith(name, "sandbox.")
}

no_network if {
	network == "none"
} else if {
	network == "listed"
	not reaches
} else := false
