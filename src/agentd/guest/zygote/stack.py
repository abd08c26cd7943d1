"""A sandbox's disk in two layers, so that a fork takes no copy of it (ADR 37).

A disk is one tmpfs, mounted on the workspace and covered there by its own folders. On it:

    w, t, h, s, run, var   what is shown at the writable places
    iw, it, ih             where the image has something at those: on each u, k, the changes of that
                           and the overlay's own, and 0, what the image has
    n                      a tmpfs for the layer to come, and on that u, k (the overlay's own) and
                           o, the overlay of what is below and u
    0, u, k, m             of a fork, in place of all others: what it shares, which nobody can write
                           any more; what it changed of that, and the kernel's own; both, an
                           overlay, which has w, t, h and so on

Landlock's rules are of inodes, and a confined agent can be given no other: so ``n/o`` is mounted,
and named in the rules, before the agent is confined. Nobody looks into it until a fork of this
sandbox shows it at the writable places (``restack``). A fork has no ``n``: a layer that is the
upper one of one overlay and the lower of the next is nothing that overlayfs wants to promise
anything of. Standard library only.
"""

from collections.abc import Sequence

from agentd.guest.zygote.root import SANDBOX_HOME
from agentd.guest.zygote.wall_kernel import WallKernel
from agentd.linux import abi, overlay

#: On the disk: the tmpfs of the layer to come; on that the overlay that shows it.
NEXT, OVER = "n", "o"
#: On the disk of a fork: the overlay of all that it has.
MERGED = "m"
#: Of the folders that are shown somewhere, where: not every sandbox has all of them.
PLACES = {
    "w": "/workspace",
    "t": "/tmp",
    "h": SANDBOX_HOME,
    "s": "/dev/shm",
    "run": "/run",
    "var": "/var",
}
#: Before the name of what lies above something of the image's.
ABOVE = "i"
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV


def mount_shared(layer: int, disk: str, kernel: WallKernel) -> str:
    """Show a shared ``layer``, a descriptor of a detached mount, to be changed on ``disk``.

    Returns where. Raises OSError.
    """
    merged = f"{disk}/{MERGED}"
    kernel.make_folder(merged, 0o755)
    overlay.mount(merged, [layer], disk, kernel)
    return merged


def prepare(disk: str, places: Sequence[str], size: str, kernel: WallKernel) -> list[int]:
    """Have the layer to come ready, above ``disk``.

    ``places`` are names on it, whose folders are there. Returns descriptors of them in the overlay,
    for Landlock's rules; empty where the kernel mounts none.
    """
    top = f"{disk}/{NEXT}"
    over = f"{top}/{OVER}"
    try:
        kernel.make_folder(top, 0o700)
        kernel.mount("tmpfs", top, "tmpfs", _NOSUID_NODEV, f"mode=0700,{size}")
        kernel.make_folder(over, 0o755)
        overlay.mount_paths(over, [disk], top, kernel)
        return [kernel.open_folder(f"{over}/{place}") for place in places]
    except OSError:
        return []
