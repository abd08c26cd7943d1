# What a sandbox may be given of the host.
package agentd

import rego.v1

deny contains concat("", ["sandbox.mounts: it has folders of the host, which this policy allows to: ", data.policy.mounts]) if {
	mounted
	not may_mount
}

# "any", "admin" or "none".
may_mount if data.policy.mounts == "any"

may_mount if {
	data.policy.mounts == "admin"
	admin
}

mounted if input.sandbox.mounts != []

mounted if {
	kind == "sandbox"
	wanted
}

# Said so that whatever is not plainly nothing counts as a mount.
wanted if {
	mounts := input.parameters.mounts
	not nothing(mounts)
}

wanted if {
	workspace := input.parameters.workspace
	not nothing(workspace)
}

nothing(null)

nothing("")

nothing([])
