"""From a fresh clone to a confined agent: what a sandbox's PID 1 does before it serves.

Reads top to bottom, one step a line, in ``confine``. Runs in the forked child, so it only uses
what the zygote has imported. Standard library and ``agentd.linux`` only.
"""

import contextlib
import errno
import os
import resource
from collections.abc import Callable
from typing import NamedTuple

from agentd.guest.zygote import (
    certificates,
    cgroup_view,
    disk,
    image_root,
    own_root,
    stack,
    var,
    writable_root,
)
from agentd.guest.zygote.asked import Request, dicts, number, pairs, strings
from agentd.guest.zygote.disk import WORKSPACE
from agentd.guest.zygote.limits import no_core
from agentd.guest.zygote.root import SANDBOX_HOME, masks
from agentd.guest.zygote.wall_kernel import KERNEL, WallKernel
from agentd.linux import abi, caps, landlock, net, overlay, process, seccomp
from agentd.linux.rights import close_all

NAMESPACES = (
    abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS
)
WRITABLE = (WORKSPACE, "/tmp", SANDBOX_HOME, *var.TOPS, "/dev/shm", "/dev/pts")
# What may be read everywhere is named again where it may be written, too: at each open(2) the
# kernel looks no further up than where all that is asked for is found (6 % of stat and open).
_ALL = landlock.READ | landlock.EXEC | landlock.WRITE
# It looks for the right to truncate as well, and on to the top where it finds none (6 % of open).
# Here that gives nobody anything: what is only to be read is mounted read-only, and what is written
# in /proc is opened for writing first. The places that are read most are named, too (10 %).
_READ = landlock.READ | landlock.EXEC | landlock.TRUNCATE
_OFTEN = ("/etc", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64")
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV

# One control less where the container that we are in refuses it: the report says so.
_OPTIONAL = frozenset({"hostname", "cgroup_namespace", "user_counts", "landlock"})
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EROFS)


class BoxError(Exception):
    """A step failed; ``stage`` names it."""

    def __init__(self, stage: str, error: Exception) -> None:
        super().__init__(f"{stage}: {error}")
        self.stage = stage
        self.errno = getattr(error, "errno", 0) or 0


class Confined(NamedTuple):
    """The names of the controls that hold, and the sockets at which the host accepts what is
    dialled; the caller's to close."""

    controls: list[str]
    sockets: list[int]


class Prepared:
    """A clone that waits for its request, and has done the steps in ``steps`` ahead of it.

    ``box`` is what the requests that it may get have in common: user, network and root, the host's
    programs or an image's. ``fds`` are numbered as those of a request are.
    """

    steps = frozenset({"user_namespace", "network", "root", "proc", "user_counts"})

    def __init__(
        self, box: Request, fds: list[int] | None = None, kernel: WallKernel = KERNEL
    ) -> None:
        """Raises OSError; the process is of no use then."""
        _identity(box, kernel)
        if box["uid"] != 0:
            caps.drop_bounding(kernel)  # a part of ``_capabilities`` that takes its time
        self.sockets: list[int] = []
        _network(box, self.sockets, kernel)
        self.fds: list[int] = []
        coming: list[int] = []
        lowers: dict[str, int] = {}
        _own_root({"private_root": False, **box}, fds or [], lowers, kernel)
        disk.build(box, self.fds, coming, kernel, lowers)
        if not dicts(box.get("mounts")):
            disk.show_workspace(box, kernel, lowers)
        _proc(kernel)
        _user_counts(box, kernel)
        self.rules = _base_rules(box, coming, kernel)
        close_all([*coming, *lowers.values()])
        self.size = box["disk"]


def confine(
    box: Request,
    fds: list[int],
    filter_: bytes,
    kernel: WallKernel = KERNEL,
    prepared: Prepared | None = None,
    enter: Callable[[], list[str]] = list,
    asked: Callable[[int], object] = lambda _: None,
) -> Confined:
    """Build the wall around this process.

    ``enter`` takes the process into its control group, and names the controls that this gives.
    ``asked`` gets the descriptor at which the filter asks, or -1, and owns it.
    Raises BoxError; the caller ends the process.
    """
    without = set(strings(box["without"]))
    ahead = prepared.steps if prepared is not None else frozenset()
    done: list[str] = []
    held: list[str] = []
    coming: list[int] = []
    lowers: dict[str, int] = {}
    sockets = [] if prepared is None else prepared.sockets
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        ("user_namespace", lambda: _identity(box, kernel)),
        ("hostname", lambda: kernel.sethostname(str(box["hostname"]))),
        ("network", lambda: _network(box, sockets, kernel)),
        ("root", lambda: _own_root(box, fds, lowers, kernel)),
        ("scratch", lambda: _scratch(box, fds, coming, lowers, kernel, prepared)),
        ("workspace", lambda: _mounts(box, fds, lowers, kernel, prepared is not None)),
        ("certificates", lambda: _certificates(box, kernel)),
        ("proc", lambda: _proc(kernel)),
        ("user_counts", lambda: _user_counts(box, kernel)),
        ("group", lambda: held.extend(enter())),
        # After it: /proc/self/cgroup shows the group as the root, and not by its name on the host.
        ("cgroup_namespace", lambda: kernel.unshare(abi.CLONE_NEWCGROUP)),
        ("cgroup_view", lambda: _cgroup_view(done, held, kernel)),
        ("rlimits", lambda: _rlimits(box, kernel)),
        ("no_new_privs", lambda: process.set_no_new_privs(kernel)),
        ("capabilities", lambda: _capabilities(box, prepared, kernel)),
        ("dumpable", lambda: process.set_dumpable(False, kernel)),
        ("landlock", lambda: _landlock(box, prepared, coming, kernel)),
        ("seccomp", lambda: asked(seccomp.install_and_listen(filter_, kernel))),
    )
    try:
        for name, step in steps:
            if name in without:
                continue
            try:
                if name not in ahead:
                    step()
            except OSError as error:
                if name in _OPTIONAL and error.errno in _REFUSED:
                    continue
                raise BoxError(name, error) from None
            done.append(name)
    finally:
        close_all([*coming, *lowers.values()])
    return Confined(done, sockets)


def _identity(box: Request, kernel: WallKernel) -> None:
    """One uid and one gid inside; outside they are this sandbox's alone, and own nothing. Without
    root they are the caller's. Where the zygote has mapped a range, it is root of that."""
    os.umask(0o022)
    if box.get("mapped"):
        kernel.become(0)
        return
    uid, outside = number(box["uid"]), number(box.get("outside") or 0)
    process.map_ids((uid, outside), (uid, outside), kernel)
    if outside:
        kernel.become(uid)


def _network(box: Request, sockets: list[int], kernel: WallKernel) -> None:
    """A loopback; of a restricted network all else arrives at ``sockets``, which the host gets."""
    if box["net"] != "host":
        net.loopback_up(kernel.ioctl)
        net.bound_options(kernel.write)
    if box["net"] == "restricted":
        sockets += kernel.capture()


def _scratch(
    box: Request,
    fds: list[int],
    coming: list[int],
    lowers: dict[str, int],
    kernel: WallKernel,
    prepared: Prepared | None,
) -> None:
    if prepared is None:
        disk.build(box, fds, coming, kernel, lowers)
        return
    fds.extend(prepared.fds)
    if prepared.size != box["disk"]:
        disk.resize(box, kernel)


def _mounts(
    box: Request, fds: list[int], lowers: dict[str, int], kernel: WallKernel, own: bool
) -> None:
    """The workspace, then what else of the host was asked for; ``own`` if it has one already."""
    mounts = list(dicts(box["mounts"]))
    cow = mounts.pop(0) if box["cow"] else None
    # Before anything covers the scratch tmpfs.
    trees = [_tree(mount, fds, kernel) for mount in mounts]
    if cow is not None:
        _overlay(cow, fds, kernel)
    elif not (own or disk.is_bare(box)) and not any(m["target"] == WORKSPACE for m in mounts):
        disk.show_workspace(box, kernel, lowers)
    for mount, tree in zip(mounts, trees, strict=True):
        target = str(mount["target"])
        if target != WORKSPACE:
            own_root.mount_point(target, bool(mount["is_dir"]))
        _attach(tree, target, kernel)
        if mount.get("copy") is not None:
            os.close(tree)


def _tree(mount: Request, fds: list[int], kernel: WallKernel) -> int:
    """The descriptor of a detached mount; of a copy one is made."""
    if mount.get("copy") is None:
        return fds[number(mount["fd"])]
    flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC
    fd = kernel.open_tree(abi.AT_FDCWD, f"{WORKSPACE}/{mount['copy']}", flags)
    attributes = abi.MOUNT_ATTR_RDONLY | abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV
    kernel.mount_setattr(fd, "", abi.AT_EMPTY_PATH, set_=attributes)
    return fd


def _overlay(mount: Request, fds: list[int], kernel: WallKernel) -> None:
    """Copy on write, mounted inside the user namespace.

    The host reads its upper directory (``cow.OverlayWall``).
    """
    kernel.mkdir(f"{WORKSPACE}/l", 0o755)
    # A copy lies over what it is a copy of, where that is there, too.
    lower = [f"{WORKSPACE}/{mount['copy']}"] if mount.get("copy") is not None else []
    if mount["fd"] is not None:
        _attach(fds[number(mount["fd"])], f"{WORKSPACE}/l", kernel)
        lower.append(f"{WORKSPACE}/l")
    overlay.mount_paths(WORKSPACE, lower, WORKSPACE, kernel)


def _attach(fd: int, target: str, kernel: WallKernel) -> None:
    kernel.move_mount(fd, "", abi.AT_FDCWD, target, abi.MOVE_MOUNT_F_EMPTY_PATH)


def _cgroup_view(done: list[str], held: list[str], kernel: WallKernel) -> None:
    if held:
        done.append("cgroup")
    if "cgroup_namespace" in done:  # else it would show the host's groups
        cgroup_view.mount(held, kernel)


def _own_root(box: Request, fds: list[int], lowers: dict[str, int], kernel: WallKernel) -> None:
    image, layer = box.get("image"), box.get("layer")
    if disk.is_writable(box):
        disk.mount(box, fds, kernel)
    if isinstance(image, dict):
        places = [(str(path), bool(is_dir)) for path, is_dir in pairs(image["places"])]
        scratch = WORKSPACE if disk.is_writable(box) else None
        bare = disk.is_bare(box)
        names = strings(image.get("shown"))
        shown = [stack.PLACES[name] for name in names]
        root = fds[number(image["fd"])]
        found = image_root.build(root, places, scratch, kernel, bare=bare, shown=shown)
        lowers.update(zip(names, found, strict=True))
    elif isinstance(layer, dict):
        writable_root.build(fds[number(layer["fd"])], layer["trees"], WORKSPACE, kernel)
    elif box["private_root"]:
        elsewhere = [(str(m["target"]), bool(m["is_dir"])) for m in dicts(box["mounts"])]
        own_root.build(elsewhere, WRITABLE, bool(box["private_programs"]), kernel)


def _certificates(box: Request, kernel: WallKernel) -> None:
    if isinstance(box.get("authority"), str):
        certificates.show(str(box["authority"]), kernel)


def _proc(kernel: WallKernel) -> None:
    """A /proc of this pid namespace, in which what is the whole machine's is empty."""
    flags = _NOSUID_NODEV | abi.MS_NOEXEC
    kernel.mount("proc", "/proc", "proc", flags)
    for empty, path in masks():
        kernel.mount(empty, path, None, abi.MS_BIND)


def _user_counts(box: Request, kernel: WallKernel) -> None:
    """Less than all of what the kernel counts by user, and in the namespaces above as well: others
    have the same user, there or here. Inside nobody has the right to write these."""
    for name, most in pairs(box.get("user_counts")):
        kernel.write(f"/proc/sys/user/{name}", str(most))
    # Landlock forbids none of it where the root can be written to: its rules have no exceptions.
    # And the machine's root may write what it owns in /proc without any capability: core_pattern
    # is a program that the kernel runs.
    if box.get("machine_root") or disk.is_writable(box):
        kernel.mount_setattr(abi.AT_FDCWD, "/proc", 0, set_=abi.MOUNT_ATTR_RDONLY)


def _rlimits(box: Request, kernel: WallKernel) -> None:
    no_core(kernel)
    kernel.setrlimit(resource.RLIMIT_NOFILE, number(box["open_files"]))
    for limit, most in pairs(box.get("user_rlimits")):
        kernel.setrlimit(number(limit), most)
    if box["pids"] is not None:
        # Counted per user and user namespace (Linux 5.14): the sandbox's own count.
        kernel.setrlimit(resource.RLIMIT_NPROC, number(box["pids"]))


def _capabilities(box: Request, prepared: Prepared | None, kernel: WallKernel) -> None:
    if box["uid"] == 0:
        caps.keep_roots(kernel, rw=box["rw"] is True)
        return
    if prepared is None:
        caps.drop_bounding(kernel)
    caps.drop_all(kernel)


def _base_rules(box: Request, coming: list[int], kernel: WallKernel) -> landlock.Ruleset | None:
    """Read and run anything, write in the writable places, and in what a fork will show there,
    ``coming``; None where the kernel has none."""
    version = number(box["landlock_abi"])
    if not version:
        return None
    rules = landlock.Ruleset(abi=version, handle_net=False, scopes=True, kernel=kernel)
    for path in ("/", *(() if box.get("image") else _OFTEN)):
        with contextlib.suppress(FileNotFoundError):
            rules.allow_path(path, _READ)
    if disk.is_writable(box):
        rules.allow_path("/", landlock.WRITE)
    rules.allow_path("/dev", landlock.WRITE | landlock.IOCTL_DEV)
    for path in WRITABLE if not disk.is_bare(box) else (image_root.SHM, "/dev/pts"):
        rules.allow_path(path, _ALL | landlock.IOCTL_DEV)
    for fd in coming:
        rules.allow_path(fd, _ALL | landlock.IOCTL_DEV)
    # mq_open(3) comes by a mount of the kernel's own, which is beneath no path, and has this root.
    with contextlib.suppress(FileNotFoundError):
        rules.allow_path(disk.QUEUES, landlock.READ | landlock.WRITE)
    return rules


def _landlock(
    box: Request, prepared: Prepared | None, coming: list[int], kernel: WallKernel
) -> None:
    """Defence in depth behind the read-only mounts; the abstract sockets' only control where the
    host's network is shared."""
    rules = prepared.rules if prepared is not None else _base_rules(box, coming, kernel)
    if rules is None:
        return
    with rules:
        for mount in dicts(box["mounts"]):
            if not mount["ro"]:
                rules.allow_path(str(mount["target"]), _ALL)
        rules.restrict()
