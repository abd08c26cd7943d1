# What a sandbox may be given of the host.
package agentd

import rego.v1

deny contains "sandbox.mounts: it has folders of the host, which is for admins" if {
	data.policy.mounts == "admin"
	mounted
	not admin
}

deny contains "sandbox.mounts: it has folders of the host" if {
	data.policy.mounts == "none"
	mounted
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
