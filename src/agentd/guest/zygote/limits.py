"""Resource limits that every agent sets for itself. Standard library only."""

import resource

from agentd.guest.zygote.wall_kernel import KERNEL, WallKernel


def no_core(kernel: WallKernel = KERNEL) -> None:
    """No core file, and no handler of the host's, which runs as its root.

    One byte is too little for a file, and the limit that a core_pattern which is a pipe heeds: of
    0 it takes no notice (do_coredump() in the kernel). A hard limit of 0 cannot be raised to it.
    """
    limit = min(resource.getrlimit(resource.RLIMIT_CORE)[1] % (1 << 64), 1)  # unlimited is -1
    kernel.setrlimit(resource.RLIMIT_CORE, limit)
