package agentd.filesystem_test

import rego.v1

import data.agentd.calls_test.call
import data.agentd.calls_test.decide

test_workspace if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "/workspace/a", "content": ""}))
	decision.allow
	not decision.obligations.approve
}

test_relative if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "a/b", "content": ""}))
	decision.allow
	not decision.obligations.approve
}

test_etc if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "/etc/passwd", "content": ""}))
	decision.allow
	decision.obligations.approve
}

test_up if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "/workspace/../etc/passwd", "content": ""}))
	decision.allow
	decision.obligations.approve
}

test_relative_up if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "../x", "content": ""}))
	decision.allow
	decision.obligations.approve
}

test_neighbour if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "/workspace2/a", "content": ""}))
	decision.allow
	decision.obligations.approve
}

test_reading_is_not_writing if {
	decision := decide(call("fs.read.v1", ["read"], {"path": "/etc/passwd"}))
	decision.allow
	not decision.obligations.approve
}

test_tmp_wants_approval if {
	decision := decide(call("fs.write.v1", ["files"], {"path": "/tmp/a", "content": ""}))
	decision.allow
	decision.obligations.approve
}
