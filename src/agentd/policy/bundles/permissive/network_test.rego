package agentd.network_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide
import data.agentd.calls_test.inside

test_fetch if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "http://anything.example:81/x", "method": "GET"}))
	decision.allow
	not decision.obligations.no_network
}

test_clone if {
	decision := decide(call("git.clone.v1", ["run"], {"url": "https://example.org/a.git", "path": "a"}))
	decision.allow
}

test_host_network if {
	decision := decide(inside(call("shell.exec.v1", ["run"], {"command": "ls"}), {"net": "host"}))
	decision.allow
}

connect := {"host": "example.com", "port": 443, "rule": "ask example.com"}

asks := inside(call("network.connect", ["egress"], connect), {"net": "restricted", "egress": ["ask example.com"]})

test_asks if {
	decision := decide(asks)
	decision.allow
	decision.obligations.approve
	not decision.obligations.no_network
}

test_asks_without_the_scope if {
	decision := decide(object.union(asks, {"principal": {"name": "bob", "scopes": ["run"], "via": "sandbox"}}))
	not decision.allow
}

test_plays if {
	parameters := {"net": "restricted", "egress": ["replay", "a.example:443"], "cassette": "00"}
	decision := decide(inside(call("sandbox.network.v1", ["create"], parameters), {"net": "restricted", "egress": parameters.egress}))
	decision.allow
	"scopes.played: bob holds the scope create" in decision.reasons
}

test_plays_without_a_scope if {
	parameters := {"net": "restricted", "egress": ["replay", "a.example:443"], "cassette": "00"}
	decision := decide(inside(call("sandbox.network.v1", ["run"], parameters), {"net": "restricted", "egress": parameters.egress}))
	not decision.allow
}
