package agentd.network_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide
import data.agentd.calls_test.inside

test_port if {
	decision := decide(call("sandbox.port.v1", ["ports"], {"port": 80}))
	not decision.allow
}

test_listed_nowhere if {
	decision := decide(call("http.fetch.v1", ["run"], {"url": "https://example.org/", "method": "GET"}))
	not decision.allow
}

test_clone if {
	decision := decide(call("git.clone.v1", ["admin"], {"url": "https://example.org/a.git", "path": "a"}))
	not decision.allow
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

test_rules if {
	decision := decide(inside(call("shell.exec.v1", ["admin"], {"command": "ls"}), {"net": "restricted", "egress": ["pypi"]}))
	not decision.allow
}

test_asks_for_rules if {
	decision := decide(call("sandbox.create.v1", ["admin"], {"net": "restricted", "egress": ["pypi"]}))
	not decision.allow
}

test_other_rules if {
	asked := call("sandbox.network.v1", ["admin"], {"net": "restricted", "egress": ["pypi"]})
	decision := decide(inside(asked, {"net": "restricted", "egress": []}))
	not decision.allow
}

connect := {"host": "example.com", "port": 443, "rule": "ask example.com"}

asks := inside(call("network.connect", ["egress"], connect), {"net": "restricted", "egress": ["ask example.com"]})

test_asks if {
	decision := decide(asks)
	not decision.allow
}
