"""The root that a runtime is given: the host's programs, or an image's files. Runs in a builder.

The runtime mounts the rest on it, where there is a place for each: it makes none behind a link of
an image's. Standard library only.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence

from agentd.guest.zygote import cgroup_view, image_root, root, var
from agentd.guest.zygote.own_root import Target
from agentd.linux import abi, mounts, overlay, paths
from agentd.linux.kernel import KERNEL

# Beneath /dev, too: runsc mounts there before that is a file system of its own.
_PLACES = ("/dev", "/dev/shm", "/proc", "/sys", root.CERTIFICATES)


def of_host(trees: Sequence[root.Tree], files: dict[str, bytes], target: str) -> None:
    """The read-only root of the host's programs, as every sandbox of the namespace wall has it."""
    root.skeleton(target, list(trees), files)
    for path, fd in trees:
        attach(fd, target + var.place(path))


def of_image(
    image: dict[str, object],
    fd: int,
    trees: Iterable[root.Tree],
    target: str,
    scratch: str,
    *,
    image_stage: str,
    uid: int,
    etc: dict[str, bytes],
) -> None:
    """An overlay of two layers that nobody writes to: directories of ours that something is mounted
    on, and the image, a detached mount. ``writable``: with a third, on the scratch tmpfs. Its files
    are ``uid``'s, and so are ours; names of hosts are those of ``etc``."""
    top, below = f"{image_stage}/t", f"{image_stage}/i"
    for path in (image_stage, top, below):
        KERNEL.mkdir(path, 0o755)
    attach(fd, below)
    ours = [(path, True) for path in _PLACES]
    ours += [(path, paths.is_folder(tree)) for path, tree in trees]
    root_fd = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = image_root.etc_at(root_fd, image_root.covered(bare=False))
        image_root.make_folders(top, place, root_fd)
        traps = _traps(root_fd)
    finally:
        os.close(root_fd)
    files = {path: etc[path] for path in image_root.FILES if path in etc}
    files |= dict.fromkeys(traps, b"")
    files = {place + path.removeprefix("/etc"): data for path, data in files.items()}
    image_root.make_places(top, (*ours, *_targets(image["places"])), files)
    cgroup_view.make(top)
    _give(top, uid)
    try:
        if image["writable"] is True:
            for name in ("r", "r/u"):
                if KERNEL.make_folder(f"{scratch}/{name}", 0o755):
                    os.chown(f"{scratch}/{name}", uid, uid)
            overlay.mount_paths(target, (top, below), f"{scratch}/r", KERNEL)
        else:
            overlay.mount_readonly(target, (top, below), KERNEL)
    except OSError as error:
        code = error.errno or errno.EINVAL
        raise OSError(code, f"{overlay.NONE} the image: {error.strerror}") from None
    for path, tree in trees:
        attach(tree, target + path)


def clone_trees(configuration: Sequence[str], *, image: bool) -> list[root.Tree]:
    """Detached read-only mounts of what the root shows of the host; devices the runtime makes."""
    if image:
        return [
            (path, mounts.clone_tree(path, readonly=True))
            for path in root.SYSFS
            if os.path.isdir(path)
        ]
    found = []
    for path, fd in root.clone_trees(configuration):
        if path.startswith("/dev/"):
            os.close(fd)
        else:
            found.append((path, fd))
    return found


def attach(fd: int, target: str) -> None:
    KERNEL.move_mount(fd, "", abi.AT_FDCWD, target, abi.MOVE_MOUNT_F_EMPTY_PATH)


def _traps(root_fd: int) -> list[str]:
    """What a runtime opens before it starts anything, and could wait for: a fifo, say."""
    found = []
    for path in ("/etc/passwd", "/etc/group"):
        try:
            fd = paths.open_inside(root_fd, path, os.O_PATH)
        except FileNotFoundError:
            continue
        except OSError:  # a link that leads in a circle, or out
            found.append(path)
            continue
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            found.append(path)
        os.close(fd)
    return found


def _give(top: str, uid: int) -> None:
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            os.chown(f"{folder}/{name}", uid, uid, follow_symlinks=False)
    os.chown(top, uid, uid)


def _targets(value: object) -> list[Target]:
    places = value if isinstance(value, list) else []
    return [(str(path), is_dir is True) for path, is_dir in places]
