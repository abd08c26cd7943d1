# Where files may be written. Paths are compared as text: what a link points to is for the sandbox,
# which never leaves its own root.
package agentd

import rego.v1

# These by name, so that they need a path that can be judged; others where they have one. Here the
# path is judged first: one that is no text is an error, whatever the policy says.
deny contains elsewhere if {
	kind == "write"
	not inside
	data.policy.outside == "deny"
}

deny contains elsewhere if {
	input.parameters.path
	input.capability.needs.writes
	not inside
	data.policy.outside == "deny"
}

approve contains elsewhere if {
	data.policy.outside == "approve"
	kind == "write"
	not inside
}

approve contains elsewhere if {
	data.policy.outside == "approve"
	input.parameters.path
	input.capability.needs.writes
	not inside
}

elsewhere := concat("", ["filesystem.outside: it writes outside ", concat(" and ", data.policy.roots)])

inside if "/" in data.policy.roots

inside if {
	not ".." in split(full, "/")
	some root in data.policy.roots
	startswith(concat("", [full, "/"]), concat("", [root, "/"]))
}

full := input.parameters.path if {
	startswith(input.parameters.path, "/")
} else := concat("", ["/workspace/", input.parameters.path])
