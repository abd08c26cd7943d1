package agentd.sandbox_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide
import data.agentd.calls_test.inside

test_create if {
	decision := decide(call("sandbox.create.v1", ["create"], {"isolation": "microvm"}))
	decision.allow
}

test_create_needs_scope if {
	decision := decide(call("sandbox.create.v1", ["run"], {}))
	not decision.allow
}

test_mounts if {
	decision := decide(call("sandbox.create.v1", ["create"], {"mounts": ["/home:/home:rw"]}))
	not decision.allow
}

test_admin_mounts if {
	decision := decide(call("sandbox.create.v1", ["admin"], {"mounts": ["/home:/home:rw"]}))
	not decision.allow
}

test_workspace if {
	decision := decide(call("sandbox.create.v1", ["create"], {"workspace": "/home:rw"}))
	not decision.allow
}

test_admin_workspace if {
	decision := decide(call("sandbox.create.v1", ["admin"], {"workspace": "/home:rw"}))
	not decision.allow
}

test_odd_mounts if {
	decision := decide(call("sandbox.create.v1", ["create"], {"mounts": "/home"}))
	not decision.allow
}

test_admin_odd_mounts if {
	decision := decide(call("sandbox.create.v1", ["admin"], {"mounts": "/home"}))
	not decision.allow
}

test_nothing_mounted if {
	decision := decide(call("sandbox.create.v1", ["create"], {"mounts": [], "workspace": null}))
	decision.allow
}

test_has_mounts if {
	decision := decide(inside(call("fs.read.v1", ["read"], {"path": "a"}), {"mounts": [{"source": "/home", "target": "/home", "mode": "ro"}]}))
	not decision.allow
}

test_fork if {
	decision := decide(call("sandbox.fork.v1", ["snapshot"], {}))
	decision.allow
}
