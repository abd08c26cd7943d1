"""The process wall: Landlock and seccomp around a process tree, and nothing else. No privileges.

Without a pid namespace nothing ends the tree by itself. So the agent has a parent, this monitor,
which stays unconfined and out of reach, adopts every orphan (subreaper), and kills what is left
when the host or the agent goes away. Then it removes the scratch directory: a host that was killed
cannot. Standard library only.
"""

import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence

from agentd.guest import agent
from agentd.guest.zygote import root, scratch
from agentd.guest.zygote.group import enter_group
from agentd.guest.zygote.limits import no_core
from agentd.guest.zygote.messages import receive
from agentd.linux import abi, caps, landlock, paths, process, seccomp
from agentd.linux.kernel import KERNEL
from agentd.linux.title import set_title
from agentd.linux.waiting import is_ready

LISTENER_FD, CONTROL_FD = 3, 4
_KILL_SECONDS = 10.0
# What of /proc and /sys can be read without learning of other processes.
_FACTS = (
    "/proc/cpuinfo",
    "/proc/filesystems",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/uptime",
    "/proc/version",
    "/proc/sys/kernel/osrelease",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
)
# Not /dev/pts: the terminals of the host's users are there.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")

Config = dict[str, object]


def main() -> None:
    """Run one sandbox until the host closes its end. Never returns."""
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))
    for fd in (LISTENER_FD, CONTROL_FD):
        os.set_inheritable(fd, False)
    control = socket.socket(fileno=CONTROL_FD)
    config, _ = receive(control)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    set_title("agentd")
    process.set_child_subreaper(True)
    agent.preload()
    try:
        _make_scratch(config)
        child = os.fork()
        if child == 0:
            control.close()
            _agent(config)
        os.close(LISTENER_FD)
        _report(control, {"pid": child})
        _watch(control, child)
        with_deadline = time.monotonic() + _KILL_SECONDS
        process.kill_descendants(os.getpid(), with_deadline)
    except OSError as error:
        _report(control, {"error": str(error)})
    _await_host(control)
    scratch.remove(str(config["scratch"]))
    os._exit(0)


def _make_scratch(config: Config) -> None:
    """Made here and not by the host, so that a host killed at any moment leaves none behind."""
    top = str(config["scratch"])
    paths = (top, os.path.join(top, "workspace"), os.path.join(top, "tmp"))
    for path in paths:
        os.mkdir(path, 0o700)
    user = _user(config)
    if user is not None:
        for path in reversed(paths):  # what is in it before it is handed over
            os.chown(path, *user, follow_symlinks=False)


def _report(control: socket.socket, message: dict[str, object]) -> None:
    with contextlib.suppress(OSError):  # a host that is gone is noticed next
        control.send(json.dumps(message).encode())


def _watch(control: socket.socket, child: int) -> None:
    ended = os.pidfd_open(child)
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(ended, select.POLLIN)
    poll.poll()  # nothing more is ever said: either one's readiness is an end


def _await_host(control: socket.socket) -> None:
    """Waits until the host has closed its end or has died; what an agent left is its to read."""
    is_ready(control, None)


def _agent(config: Config) -> None:
    status = 1
    monitor = os.getppid()
    try:
        listener = socket.socket(fileno=LISTENER_FD)
        os.setsid()
        try:
            ready = agent.Ready(pid1=False, paths=[str(config["scratch"])])
            done = _confine(config)
            # Not before: a change of user clears it.
            process.set_pdeathsig(signal.SIGKILL)
            if os.getppid() != monitor:
                os._exit(1)
            if enter_group(listener):
                done.append("cgroup")
        except OSError as error:
            answer = {"error": str(error), "errno": error.errno}
            listener.send(json.dumps(answer).encode())
            os._exit(1)
        env = config["env"]
        listener.send(json.dumps({"controls": done}).encode())
        ready.serve(listener, env if isinstance(env, dict) else {})
        status = 0
    finally:
        os._exit(status)


def _confine(config: Config) -> list[str]:
    """The names of the controls in force. Raises OSError."""
    without = config["without"]
    skip = set(without) if isinstance(without, list) else set()
    os.umask(0o022)
    os.chdir("/")
    user = _user(config)
    if "capabilities" in skip:
        skip.add("bounding")
    if not config["owns_nothing"] or "identity" in skip:
        skip.add("host_files")  # their owner is kept from them by seccomp
    if "landlock" in skip:
        skip.add("host_files")  # it would hide what Landlock alone stops
    steps: list[tuple[str, Callable[[], object]]] = [
        ("rlimits", lambda: _rlimits(config)),
        ("host_files", lambda: _freeze_host(str(config["scratch"]), _written(config))),
        ("bounding", caps.drop_bounding_if_allowed),  # a change of user takes the right to
        ("identity", lambda: None if user is None else _identity(*user)),
        ("no_new_privs", process.set_no_new_privs),
        ("capabilities", caps.drop_all),
        ("dumpable", lambda: process.set_dumpable(False)),
        ("landlock", lambda: _landlock(config)),
        ("seccomp", lambda: seccomp.install(_filter(config))),
    ]
    if not config["confine"]:
        steps = steps[:1]
    return [name for name, step in steps if name not in skip and step() is not False]


def _filter(config: Config) -> bytes:
    return seccomp.build(str(config["profile"]), inet=config["net"] == "host")


def _freeze_host(scratch: str, written: Sequence[str]) -> bool:
    """As root: every mount but the scratch directory, and what is to be written, is read-only to
    the agent and its commands.

    Whoever may write a file may set its times and attributes, which Landlock does not govern.
    False where no mount namespace can be had, as in most containers.
    """
    open_: list[int] = []
    try:
        KERNEL.unshare(abi.CLONE_NEWNS)
        # What the host mounts later would come along writable; so it keeps out.
        KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
        KERNEL.mount(scratch, scratch, None, abi.MS_BIND)
        for path in written:
            open_ += _mounted_by_itself(path)
        KERNEL.mount_setattr(abi.AT_FDCWD, "/", abi.AT_RECURSIVE, set_=abi.MOUNT_ATTR_RDONLY)
        KERNEL.mount_setattr(abi.AT_FDCWD, scratch, 0, clear=abi.MOUNT_ATTR_RDONLY)
        for fd in open_:
            KERNEL.mount_setattr(fd, "", abi.AT_EMPTY_PATH, clear=abi.MOUNT_ATTR_RDONLY)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return False
    finally:
        for fd in open_:
            os.close(fd)
    return True


def _mounted_by_itself(path: str) -> list[int]:
    """Mount a folder of the host's by itself in its place; return a descriptor of that mount, and
    none of a folder that is read-only on the host."""
    fd = paths.open_plain(path)
    try:
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            return []
        flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC | abi.AT_RECURSIVE
        tree = KERNEL.open_tree(fd, "", flags | abi.AT_EMPTY_PATH)
        try:
            place = abi.MOVE_MOUNT_F_EMPTY_PATH | abi.MOVE_MOUNT_T_EMPTY_PATH
            KERNEL.move_mount(tree, "", fd, "", place)
        except BaseException:
            os.close(tree)
            raise
        return [tree]
    finally:
        os.close(fd)


def _written(config: Config) -> list[str]:
    mounts = config["mounts"]
    found = mounts if isinstance(mounts, list) else []
    return [str(mount["source"]) for mount in found if not mount["ro"]]


def _user(config: Config) -> tuple[int, int] | None:
    """Whom root becomes: uid and gid."""
    uid, gid = config["uid"], config["gid"]
    return (uid, gid) if isinstance(uid, int) and isinstance(gid, int) else None


def _identity(uid: int, gid: int) -> None:
    """As root: become a user that owns nothing but the scratch directory, or the workspace's."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _rlimits(config: Config) -> None:
    no_core()
    files = config["open_files"]
    if isinstance(files, int):
        hard = min(files, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bounds = config["user_rlimits"]
    for number, most in bounds if isinstance(bounds, list) else []:
        resource.setrlimit(number, (most, most))


def _landlock(config: Config) -> None:
    version = landlock.abi_version()
    closed = config["net"] == "none"
    with landlock.Ruleset(abi=version, handle_net=closed, scopes=True) as rules:
        for path in root.PROGRAMS:
            _allow(rules, path, landlock.READ | landlock.EXEC)
        for path in (*root.ETC_FILES, *root.ETC_MADE, "/etc/mtab"):
            if path not in _paths(config["hidden"]):
                _allow(rules, path, landlock.READ)
        for path in _paths(config["configuration"]):
            _allow(rules, path, landlock.READ)
        if not closed:
            _allow(rules, "/etc/resolv.conf", landlock.READ)
        for path in _FACTS:
            _allow(rules, path, landlock.READ)
        for path in _DEVICES:
            _allow(rules, path, landlock.READ | landlock.WRITE | landlock.IOCTL_DEV)
        everything = landlock.READ | landlock.WRITE | landlock.EXEC
        _allow(rules, str(config["scratch"]), everything)
        mounts = config["mounts"]
        for mount in mounts if isinstance(mounts, list) else []:
            readonly = landlock.READ | landlock.EXEC
            _allow_mount(rules, mount["source"], readonly if mount["ro"] else everything)
        rules.restrict()


def _paths(value: object) -> list[str]:
    return [str(path) for path in value] if isinstance(value, list) else []


def _allow_mount(rules: landlock.Ruleset, source: str, access: int) -> None:
    """Who asked for the path may have put a link into it since it was judged: none is followed."""
    fd = paths.open_plain(source)
    try:
        rules.allow_path(fd, access)
    finally:
        os.close(fd)


def _allow(rules: landlock.Ruleset, path: str, access: int) -> None:
    try:
        rules.allow_path(path, access)
    except FileNotFoundError:
        return  # absent on this distribution
