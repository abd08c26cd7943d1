# What a sandbox may be given of the host.
package agentd

import rego.v1

deny contains mounted if {
	not data.policy.mounts == "any"
	mounts := input.sandbox.mounts
	not mounts == []
	not may_mount
}

deny contains mounted if {
	not data.policy.mounts == "any"
	kind == "sandbox"
	wanted
	not may_mount
}

mounted := concat("", ["sandbox.mounts: it has folders of the host, which this policy allows to: ", data.policy.mounts])

# Besides "any", mounts are "admin" or "none".
may_mount if {
	data.policy.mounts == "admin"
	admin
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
