# Where files may be written. Paths are compared as text: what a link points to is for the sandbox,
# which never leaves its own root.
package agentd

import rego.v1

deny contains concat("", ["filesystem.outside: it writes outside ", concat(" and ", data.policy.roots)]) if {
	outside
	data.policy.outside == "deny"
}

approve contains concat("", ["filesystem.outside: it writes outside ", concat(" and ", data.policy.roots)]) if {
	outside
	data.policy.outside == "approve"
}

outside if {
	writes
	not inside
}

# These by name, so that they need a path that can be judged; others where they have one.
writes if {
	kind == "write"
} else if {
	input.parameters.path
	input.capability.needs.writes
}

inside if "/" in data.policy.roots

inside if {
	not ".." in split(full, "/")
	some root in data.policy.roots
	startswith(concat("", [full, "/"]), concat("", [root, "/"]))
}

full := input.parameters.path if {
	startswith(input.parameters.path, "/")
} else := concat("", ["/workspace/", input.parameters.path])
