# Who may reach what. A host is compared as it is written: where its name leads, and where a
# redirect goes, is for what makes the connection.
package agentd

import rego.v1

# "any", "listed" (http.fetch to the hosts and ports of the policy, and sandboxes with rules, which
# the daemon's egress.allow bounds) or "none".
network := data.policy.network

deny contains hosts if {
	network != "any"
	network != "listed"
	input.parameters.net != "none"
}

deny contains hosts if {
	network == "listed"
	input.parameters.net != "none"
	input.parameters.net != "restricted"
}

deny contains hosts if {
	network != "any"
	network != "listed"
	not input.sandbox.net == "none"
	not bare
}

deny contains hosts if {
	network == "listed"
	not input.sandbox.net == "none"
	not input.sandbox.net == "restricted"
	not bare
}

hosts := "network.restricted: a sandbox with a network is not allowed" if {
	input.sandbox.net == "restricted"
} else := "network.host: a sandbox with a network of the host is not allowed"

# A connection that a rule of its sandbox has somebody asked about ("ask api.example.com"): that is
# a person, unless the policy says "allow".
approve contains "network.ask: a rule of its sandbox asks about it" if {
	input.capability.name == "network.connect"
	not data.policy.connect == "allow"
}

# No sandbox, and none is asked for.
bare if {
	input.capability.needs.sandbox == false
	not input.sandbox.net != ""
}

# Some by name, whatever they say that they need.
reaches if kind == "network"

reaches if not input.capability.needs.network == false

# Those by name, and those that say so.
deny contains refused if {
	network != "any"
	kind == "network"
}

deny contains unconnected if {
	network != "any"
	not input.capability.needs.network == false
}

refused := "network.unlisted: the url does not name a listed host and port" if {
	network == "listed"
	input.capability.name == "http.fetch.v1"
	not listed
} else := unconnected

unconnected := concat("", ["network.", network, ": ", input.capability.name, " needs a network that it cannot have"]) if not open

open if {
	network == "listed"
	input.capability.name == "http.fetch.v1"
} else if {
	# The caller's way in is no way out; but where there is to be no network, there is neither.
	network == "listed"
	input.capability.name == "sandbox.port.v1"
	input.capability.needs.network == false
}

# No user, no capitals, no other forms of a host: nothing that two readers could read in two ways.
listed if {
	regex.match(`^https?://[a-z0-9.-]+(:[0-9]{1,5})?([/?][!-~]*)?$`, input.parameters.url)
	authority := split(split(input.parameters.url, "/")[2], "?")[0]
	split(authority, ":")[0] in data.policy.hosts
	port(authority) in data.policy.ports
}

port(authority) := to_number(split(authority, ":")[1]) if {
	contains(authority, ":")
} else := 443 if {
	startswith(input.parameters.url, "https:")
} else := 80
