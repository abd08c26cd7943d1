# The decision: allowed where something grants it and nothing denies it. The other modules add to
# grant, deny and approve, each a set of "rule: why" texts. Written for speed, as this is on every
# call's way: what the data says is asked first, for it is settled when the bundle is compiled; then
# what rarely holds. A look-up costs less than a rule, a function of the engine more.
package agentd

import rego.v1

decision := {"allow": false, "reasons": deny} if {
	not deny == set()
} else := {"allow": true, "reasons": grant, "obligations": obligations} if {
	not grant == set()
	approve == set()
} else := {"allow": true, "reasons": grant | approve, "obligations": approved} if {
	not grant == set()
} else := {"allow": false, "reasons": ["base.default: nothing grants it"]}

# So that they are sets where no module adds to them.
deny contains "base.never: " if false

grant contains "base.never: " if false

name := input.capability.name

# "read", "write", "code", "network" or "sandbox"; undefined for what third parties brought.
kind := data.calls[input.capability.name].kind

obligations := {"approve": false} if {
	input.capability.needs.sandbox == false
	not of_sandboxes
} else := {
	"level": data.policy.level,
	"limits": data.policy.limits,
	"no_network": no_network,
	"approve": false,
}

# The same, where an approval is wanted.
approved := {"approve": true} if {
	input.capability.needs.sandbox == false
	not of_sandboxes
} else := {
	"level": data.policy.level,
	"limits": data.policy.limits,
	"no_network": no_network,
	"approve": true,
}

# What acts in the daemon itself, and makes no sandbox, has no wall to oblige.
of_sandboxes if startswith(input.capability.name, "sandbox.")

no_network if {
	network == "none"
} else if {
	network == "listed"
	not reaches
	not input.sandbox.net == "restricted"
} else := false
