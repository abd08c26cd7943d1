"""The writable places of a virtual machine's sandbox: directories of one bounded tmpfs."""

import os
from collections.abc import Mapping

from agentd.linux import abi, overlay
from agentd.linux.kernel import KERNEL, Kernel

WORKSPACE = "/workspace"
HOME = "/home/sandbox"
STATE = "/run/agentd"  # the agent's own
#: Where a root that can be written to has its changes.
UPPER = f"{STATE}/upper"
BYTES_PER_INODE = 4096
MIN_INODES, MAX_INODES = 1024, 1 << 20
# None: the sandbox's user can make neither a device node nor a file of root's, and v1's root may.
_FLAGS = 0
# Directory of the tmpfs, where it is seen, mode, whether it belongs to the sandbox's user. The
# workspace comes last: it hides the tmpfs itself.
_PLACES = (
    ("t", "/tmp", 0o1777, False),
    ("s", "/dev/shm", 0o1777, False),
    ("r", UPPER, 0o700, False),
    ("h", HOME, 0o755, True),
    ("w", WORKSPACE, 0o755, True),
)


def prepare(user: int, kernel: Kernel = KERNEL) -> None:
    """Mount it, once: an agent that was started again finds it there. Raises OSError."""
    if os.path.ismount(WORKSPACE):
        return
    for _, target, _, _ in _PLACES:
        os.makedirs(target, exist_ok=True)
    # Without a size it may take half of the memory (tmpfs(5)).
    kernel.mount("tmpfs", WORKSPACE, "tmpfs", _FLAGS, "mode=0755")
    for name, target, mode, owned in _PLACES:
        path = f"{WORKSPACE}/{name}"
        os.mkdir(path)
        os.chmod(path, mode)
        if owned:
            os.chown(path, user, user)
        kernel.mount(path, target, None, abi.MS_BIND)


def show(target: str, lower: str, root: str, kernel: Kernel = KERNEL) -> None:
    """Have what an image has at a writable place be seen there below ``root``, and changes of it on
    the tmpfs. ``lower`` is the image's folder. Raises OSError."""
    name, mode = next((name, mode) for name, path, mode, _ in _PLACES if path == target)
    own = f"{UPPER}/above-{name}"
    kernel.make_folder(own, 0o755)
    kernel.make_folder(f"{own}/u", mode)
    overlay.mount_paths(root + target, [lower], own, kernel)


def give_to(user: int) -> None:
    """Gives a user its places; what others have made in them stays theirs."""
    for _, target, _, owned in _PLACES:
        if owned:
            os.chown(target, user, user)


def bound(size: int, kernel: Kernel = KERNEL) -> None:
    """Bounds it in bytes and in inodes. Raises OSError, EINVAL where more than that is in use."""
    inodes = min(max(size // BYTES_PER_INODE, MIN_INODES), MAX_INODES)
    options = f"size={size},nr_inodes={inodes}"
    # There nothing of an image's lies below it.
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", abi.MS_REMOUNT | _FLAGS, options)


def place(contents: Mapping[str, str], backing: str, kernel: Kernel = KERNEL) -> None:
    """Places files over those of the image, or of the kernel, by bind mounts; again and again.

    ``contents`` maps each path to its text; ``backing`` is a directory for what is mounted.
    """
    os.makedirs(backing, mode=0o755, exist_ok=True)
    for path, text in contents.items():
        source = os.path.join(backing, os.path.basename(path))
        write(source, text.encode())
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write(path, b"")
        if not os.path.samefile(source, path):
            kernel.mount(source, path, None, abi.MS_BIND)


def write(path: str, data: bytes) -> None:
    """Have a file hold this, readable to everybody; one that is there stays the same one. Raises
    OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o644), "wb") as file:  # all of it, or an error
        file.write(data)
        os.fchmod(file.fileno(), 0o644)
