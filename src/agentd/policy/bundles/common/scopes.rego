# Which scope a principal needs for a call: calls.json has the table, and a bundle says in
# policy.others what those need that are not in it (null: nobody may).
package agentd

import rego.v1

grant contains held

# The first is the second without a rule between, for what the table has.
held := concat("", ["scopes.held: ", input.principal.name, " holds the scope ", needed]) if {
	needed := data.calls[input.capability.name].scope
	needed in input.principal.scopes
} else := concat("", ["scopes.held: ", input.principal.name, " holds the scope ", scope]) if {
	scope in input.principal.scopes
} else := concat("", ["scopes.admin: ", input.principal.name, " is an admin"]) if {
	admin
	scope != null
}

# A cassette that is put in has nobody dialled, and takes what its sandbox took to be made.
grant contains played if input.capability.name == "sandbox.network.v1"

played := concat("", ["scopes.played: ", input.principal.name, " holds the scope create"]) if {
	input.parameters.cassette
	"create" in input.principal.scopes
}

scope := data.calls[input.capability.name].scope if {
	data.calls[input.capability.name]
} else := data.policy.others

admin if "admin" in input.principal.scopes
