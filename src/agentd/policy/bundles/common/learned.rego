# Allows what was seen: data.learned has, by capability, the shapes of its calls. One matches where
# each of its members does; null and "" are for what a call did not have.
package agentd

import rego.v1

network := data.policy.network

approve := set()

reaches if not input.capability.needs.network == false

deny contains concat("", ["learned.unseen: no such call of ", name, " was seen"]) if not seen

seen if {
	some shape in data.learned[name]
	shape.net == net
	object.get(shape, "egress", []) == egress
	shape.mounts == mounts
	shape.asked == asked
	object.get(shape, "host", null) == host
	place(shape.folder)
	origin(shape.origin)
}

default net := null

net := input.sandbox.net

# The rules of a restricted network: those that are asked for, or that the sandbox has.
default egress := []

egress := input.parameters.egress if {
	input.parameters.egress != null
} else := input.sandbox.egress

default mounts := []

mounts := input.sandbox.mounts

asked := [port, asked_net, asked_mounts, workspace, isolation]

default port := null

port := input.parameters.port

# Of a connection that is asked about.
default host := null

host := input.parameters.host

default asked_net := null

asked_net := input.parameters.net

default asked_mounts := null

asked_mounts := input.parameters.mounts

default workspace := null

workspace := input.parameters.workspace

default isolation := null

isolation := input.parameters.isolation

default path := ""

path := input.parameters.path

place(folder) if {
	folder == ""
	path == ""
}

place(folder) if {
	folder != ""
	path != ""
	not ".." in split(path, "/")
	startswith(concat("", [full, "/"]), concat("", [folder, "/"]))
}

# Without "." and empty parts, which mean nothing.
full := concat("/", array.concat([""], [part | some part in split(whole, "/"); not part in {"", "."}]))

whole := path if {
	startswith(path, "/")
} else := concat("", ["/workspace/", path])

default url := ""

url := input.parameters.url

origin(known) if url == known

origin(known) if {
	regex.match(`^https?://[a-z0-9.-]+(:[0-9]{1,5})?([/?][!-~]*)?$`, url)
	parts := split(split(url, "?")[0], "/")
	known == concat("", [parts[0], "//", parts[2]])
}
