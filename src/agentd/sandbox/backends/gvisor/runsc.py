"""How runsc is called."""

from agentd.model.units import parse_size
from agentd.sandbox.backends.oci.runtimes import Runtime

_PACKAGES = {
    "Debian and Ubuntu": "apt install runsc",
    "others": "the release at https://gvisor.dev/docs/user_guide/install",
}
# Control groups are agentd's. What is written goes
# to agentd's bounded scratch, and to no overlay of runsc's own, which nothing bounds; and at once,
# so that a snapshot has it.
_FILES = ("--overlay2=none", "--file-access=shared")
_FLAGS = ("--ignore-cgroups", *_FILES, "--log-format=text")
_PASSING = ("--pass-fd", "3:3")

#: By the kind of a sandbox's network: gVisor's own has loopback and nothing else, or what is in the
#: network namespace that the builder made.
NETWORK = {"none": "--network=none", "restricted": "--network=sandbox"}
#: The first is taken where none is named. KVM never is by itself: on a machine whose /dev/kvm runs
#: no ordinary guest runsc would wait for ever.
RUNTIMES = {
    "runsc": Runtime("runsc", (*_FLAGS, "--platform=systrap"), _PASSING, _PACKAGES),
    "runsc-kvm": Runtime("runsc-kvm", (*_FLAGS, "--platform=kvm"), _PASSING, _PACKAGES, "runsc"),
}
#: For gVisor's kernel, beside what commands may have. It takes more (57 MiB resident, of which the
#: program itself is most), but with that commands would have more than was asked for: with 16 a
#: command gets 52 of 64 MiB, with 32 it gets 69. A sandbox of 16 MiB still runs.
BASE_MEMORY = parse_size("16M")
