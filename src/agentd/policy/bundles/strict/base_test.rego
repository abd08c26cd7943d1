package agentd.base_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide

test_scope_is_needed if {
	decision := decide(call("fs.read.v1", ["run"], {"path": "a"}))
	not decision.allow
	decision.reasons == ["base.default: nothing grants it"]
}

test_scope_is_enough if {
	decision := decide(call("fs.read.v1", ["read"], {"path": "a"}))
	decision.allow
	"scopes.held: bob holds the scope read" in decision.reasons
}

test_admin_has_every_scope if {
	decision := decide(call("fs.read.v1", ["admin"], {"path": "a"}))
	decision.allow
}

test_others if {
	decision := decide(call("weather.ask.v1", ["run"], {}))
	not decision.allow
}

test_others_by_admin if {
	decision := decide(call("weather.ask.v1", ["admin"], {}))
	not decision.allow
}

test_no_principal if {
	decision := decide(object.union(call("fs.read.v1", [], {}), {"principal": {"name": null, "scopes": null}}))
	not decision.allow
}

test_obliges if {
	decision := decide(call("shell.exec.v1", ["run"], {"command": "ls"}))
	decision.allow
	decision.obligations.level == "namespace"
	decision.obligations.no_network
	decision.obligations.limits.timeout == 600
	not decision.obligations.approve
}
