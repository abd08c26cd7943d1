package agentd.calls_test

import rego.v1

# A call by bob, with these scopes and parameters, to a sandbox without network and mounts.
call(name, scopes, parameters) := {
	"principal": {"name": "bob", "scopes": scopes, "via": "key"},
	"capability": {
		"name": name,
		"needs": {
			"level": "process",
			"network": name in {"http.fetch.v1", "git.clone.v1"},
			"writes": name in {"fs.write.v1", "fs.edit.v1", "git.clone.v1"},
			"sandbox": name != "sandbox.create.v1",
		},
	},
	"parameters": parameters,
	"sandbox": {"id": "s", "level": "namespace", "net": "none", "mounts": []},
	"request": {"id": "r", "time": 1800000000, "signer": "", "via": "http"},
}

# The same with a sandbox that has these.
inside(asked, members) := object.union(asked, {"sandbox": object.union(asked.sandbox, members)})

# Member by member: the engine's compiler cannot replace the input as a whole.
decide(asked) := decision if {
	decision := data.agentd.decision with input.principal as asked.principal
		with input.capability as asked.capability
		with input.parameters as asked.parameters
		with input.sandbox as asked.sandbox
		with input.request as asked.request
}
