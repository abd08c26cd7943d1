package agentd.network_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide
import data.agentd.calls_test.inside

test_listed if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org/a?b=c", "method": "GET"}))
	decision.allow
	not decision.obligations.no_network
}

test_listed_with_port if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org:443/", "method": "GET"}))
	decision.allow
}

test_unlisted if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://evil.example/", "method": "GET"}))
	not decision.allow
}

test_port if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org:22/", "method": "GET"}))
	not decision.allow
}

test_plain if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "http://example.org/", "method": "GET"}))
	not decision.allow
}

test_user if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org@evil.example/", "method": "GET"}))
	not decision.allow
}

test_user_and_port if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org:443@evil.example/", "method": "GET"}))
	not decision.allow
}

test_backslash if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://evil.example\\@example.org/", "method": "GET"}))
	not decision.allow
}

test_suffix if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org.evil.example/", "method": "GET"}))
	not decision.allow
}

test_fragment if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://evil.example#@example.org/", "method": "GET"}))
	not decision.allow
}

test_query if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://evil.example?@example.org/", "method": "GET"}))
	not decision.allow
}

test_capitals if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://EXAMPLE.ORG/", "method": "GET"}))
	not decision.allow
}

test_file if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "file:///etc/passwd", "method": "GET"}))
	not decision.allow
}

test_newline if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org\n.evil.example/", "method": "GET"}))
	not decision.allow
}

test_no_host if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https:///example.org/", "method": "GET"}))
	not decision.allow
}

test_unicode if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://exаmple.org/", "method": "GET"}))
	not decision.allow
}

test_clone if {
	decision := decide(call("git.clone.v1", ["run"], {"url": "https://example.org/a.git", "path": "a"}))
	not decision.allow
}

test_port_is_a_way_in if {
	decision := decide(call("sandbox.port.v1", ["ports"], {"port": 80}))
	decision.allow
}

test_host_network if {
	decision := decide(inside(call("shell.exec.v1", ["admin"], {"command": "ls"}), {"net": "host"}))
	not decision.allow
}

test_asks_for_host_network if {
	decision := decide(call("sandbox.create.v1", ["admin"], {"net": "host"}))
	not decision.allow
}

test_needs_network if {
	asked := call("shell.exec.v1", ["admin"], {"command": "ls"})
	needs := object.union(asked.capability.needs, {"network": true})
	wanted := object.union(asked, {"capability": {"name": "shell.exec.v1", "needs": needs}})
	decision := decide(wanted)
	not decision.allow
}

test_unknown_network if {
	asked := object.union(object.remove(call("shell.exec.v1", ["admin"], {"command": "ls"}), ["sandbox"]), {"sandbox": {}})
	decision := decide(asked)
	not decision.allow
}

test_rules_are_for_the_configuration if {
	decision := decide(inside(call("shell.exec.v1", ["run"], {"command": "ls"}), {"net": "restricted", "egress": ["pypi"]}))
	decision.allow
	not decision.obligations.no_network
}

test_asks_for_rules if {
	asked := call("sandbox.create.v1", ["create"], {"net": "restricted", "egress": ["pypi"]})
	decision := decide(inside(asked, {"net": "restricted", "egress": ["pypi"]}))
	decision.allow
	not decision.obligations.no_network
}

test_other_rules if {
	asked := call("sandbox.network.v1", ["egress"], {"net": "restricted", "egress": ["pypi"]})
	decision := decide(inside(asked, {"net": "restricted", "egress": []}))
	decision.allow
}

test_other_rules_without_the_scope if {
	asked := call("sandbox.network.v1", ["create", "net"], {"net": "restricted", "egress": ["pypi"]})
	decision := decide(inside(asked, {"net": "restricted", "egress": []}))
	not decision.allow
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
