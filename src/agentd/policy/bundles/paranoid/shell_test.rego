package agentd.shell_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide

test_command if {
	decision := decide(call("shell.exec.v1", ["run"], {"command": "ls", "args": ["-l"]}))
	decision.allow
	decision.obligations.approve
}

test_python if {
	decision := decide(call("python.exec.v1", ["run"], {"code": "1"}))
	decision.allow
	decision.obligations.approve
}

test_admin if {
	decision := decide(call("shell.exec.v1", ["admin"], {"command": "ls"}))
	decision.allow
	not decision.obligations.approve
}

test_needs_scope if {
	decision := decide(call("shell.exec.v1", ["read"], {"command": "ls"}))
	not decision.allow
}
