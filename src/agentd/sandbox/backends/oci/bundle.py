"""What an OCI runtime is given: a root, mounts and ``config.json``, made by a builder of its own.

Runs in a clone of the launcher, which is root of a user namespace and in a mount namespace that
nobody else has. All lies on a tmpfs at ``STAGE``. Standard library only.

Fields of a request: ``config`` is ``config.json``, made by the host, in which paths of ``STAGE``
stand; ``argv`` the runtime's command line, ``seconds`` what it may take; ``disk`` and ``inodes``
bound the scratch tmpfs; ``folders`` are ``[name, mode]`` of its directories, which are ``uid``'s;
``mounts`` are ``[name, is_dir, passed]``, each attached at ``STAGE/m/name`` where it is passed
along. With ``cow`` the first of them is the workspace, below an overlay, and ``cow_copies`` are
what the host has put on the scratch tmpfs to lie over it. With ``lend`` the host gets that first.
``stack`` are the directories that forks may share, ``shared``: this is one, and what it shares is
passed along (``guest/zygote/stack.py``).
With ``device`` a restricted network has one, for a kernel that writes packets. ``authority`` is
whose certificates its programs trust beside those that they have.
``filter`` is a seccomp program in hexadecimal, or none, that holds the runtime and all it starts.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from typing import NoReturn

from agentd.guest.zygote import certificates, cgroup_view, root, stack, var
from agentd.guest.zygote.asked import Request, number, strings
from agentd.guest.zygote.group import enter_group
from agentd.guest.zygote.messages import COMING_FD, LISTENER_FD, refuse, send
from agentd.guest.zygote.wall_kernel import KERNEL
from agentd.linux import abi, anyip, mounts, net, overlay, process, seccomp, veth
from agentd.linux.rights import close_all
from agentd.linux.waiting import is_ready
from agentd.sandbox.backends.oci import roots

#: Covers what the host has there once all that comes from the host is open.
STAGE = "/tmp"
ROOT = f"{STAGE}/root"
SCRATCH = f"{STAGE}/scratch"
#: Of a fork that shares: all that it has, as the scratch tmpfs of others.
MERGED = f"{SCRATCH}/{stack.MERGED}"
MOUNTS = f"{STAGE}/m"
BUNDLE = f"{STAGE}/bundle"
STATE = f"{STAGE}/state"
LOG = f"{STAGE}/log"
PID_FILE = f"{STAGE}/pid"
NETWORK = f"{STAGE}/network"
COW = f"{STAGE}/cow"
IMAGE = f"{STAGE}/image"
SHOWN = f"{STAGE}/shown"
#: Where the agent's code is, and its interpreter's files, if the root has none.
AGENT = "/.agentd/agent"
_NET_SETTINGS = "/proc/sys/net"
_NOSUID_NODEV = abi.MS_NOSUID | abi.MS_NODEV
_ENVIRONMENT = {
    "HOME": STAGE,
    "LANG": "C.UTF-8",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "XDG_RUNTIME_DIR": STATE,
}
# The launcher ignores them, and nobody tells its children apart.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LOG_BYTES = 4 << 10
_END_SECONDS = 5.0
# No descriptor of a runtime's has such a number.
_ABOVE = 10


def clone_trees(request: Request) -> list[root.Tree]:
    """Detached read-only mounts of what the root shows of the host, for one sandbox."""
    image = request["image"] is not None
    trees = roots.clone_trees(strings(request["configuration"]), image=image)
    for source, target in _pairs(request["agent"]):
        trees.append((target, mounts.clone_tree(source, readonly=True)))
    return trees


def build(request: Request, fds: list[int], trees: list[root.Tree]) -> NoReturn:
    """Make the bundle and have the runtime start it; answer, and end.

    ``fds``: the agent's listener, the socket to answer at, mounts in order, the image's and what is
    shared at last.
    """
    listener, answers = fds[0], socket.socket(fileno=fds[1])
    try:
        process.set_child_subreaper(True)
        disk = _stage(request)
        if request["lend"] is True:
            # What it is to begin with the host writes there, and lets us into the group then.
            send(answers, {"ok": True}, [disk])
        held = enter_group(answers)
        sockets = _network(str(request["net"]), device=request["device"] is True)
        if request["shared"] is True:
            stack.mount_shared(fds.pop(), SCRATCH, KERNEL)
        done = _make(request, fds[2:], trees, held)
        coming = _coming(request)
        done += _filter(str(request["filter"]))
        pid = _run(strings(request["argv"]), listener, coming, float(str(request["seconds"])))
        given = [os.pidfd_open(pid), disk, *sockets]
        if coming or request["shared"] is True:
            given.append(KERNEL.open_mount_namespace())
        send(answers, {"ok": True, "held": done, "sockets": len(sockets)}, given)
        os._exit(0)
    except Exception as error:
        # Of what it was short, the rest of this is too. An orphan of the runtime's is ours, as we
        # are a subreaper.
        close_all([*fds[2:], *(fd for _, fd in trees)])
        process.kill_descendants(os.getpid(), time.monotonic() + _END_SECONDS)
        refuse(answers, None, error)
    os._exit(1)


def _stage(request: Request) -> int:
    """The places for all that comes; a descriptor of the scratch tmpfs, bounded in bytes and
    inodes, of which the writable places are directories."""
    # All that is to be had of the host by its path is open by now.
    KERNEL.mount("tmpfs", STAGE, "tmpfs", _NOSUID_NODEV, "mode=0755,size=16m,nr_inodes=8k")
    for path in (ROOT, SCRATCH, MOUNTS, BUNDLE, STATE, COW):
        KERNEL.mkdir(path, 0o755)
    uid = request["uid"]
    options = f"mode=0755,size={request['disk']},nr_inodes={request['inodes']},uid={uid},gid={uid}"
    KERNEL.mount("tmpfs", SCRATCH, "tmpfs", _NOSUID_NODEV, options)
    return os.open(SCRATCH, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _network(kind: str, *, device: bool) -> list[int]:
    """A network namespace, made by agentd and not by the runtime: it is there before anything of an
    image runs. Of a restricted one the sockets are returned at which the host accepts."""
    if kind == "host":
        return []
    sockets = []
    if device:
        sockets = veth.capture()
        # runsc takes no device in the machine's own network namespace, and takes any for that which
        # shows a certain file in there: newer kernels show it in all.
        KERNEL.mount("tmpfs", _NET_SETTINGS, "tmpfs", _NOSUID_NODEV, "mode=0555,size=4k")
    else:
        KERNEL.unshare(abi.CLONE_NEWNET)
        net.loopback_up()
        net.bound_options(KERNEL.write)
        sockets = anyip.capture() if kind == "restricted" else []
    root.write(NETWORK, b"")
    KERNEL.mount("/proc/self/ns/net", NETWORK, None, abi.MS_BIND)
    return [sock.detach() for sock in sockets]


def _make(
    request: Request, passed: list[int], trees: list[root.Tree], held: list[str]
) -> list[str]:
    """The bundle; the names of what this puts in force."""
    config = request["config"]
    assert isinstance(config, dict)  # noqa: S101  (the host made it; this narrows the type)
    # What this user, who is the sandbox's, can read there at all.
    config["linux"]["maskedPaths"] = [path for _, path in root.masks()]
    for name, most in _counts(request["user_counts"]):
        KERNEL.write(f"/proc/sys/user/{name}", str(most))
    image = request["image"]
    asked = {"nameserver": veth.GATEWAY} if request["device"] is True else {}
    etc = root.read_etc(str(request["net"]), strings(request["hidden"]), **asked)
    if isinstance(image, dict):
        roots.of_image(
            image,
            passed.pop(),
            trees,
            ROOT,
            SCRATCH,
            image_stage=IMAGE,
            uid=number(request["uid"]),
            etc=etc,
        )
    else:
        roots.of_host(trees, etc, ROOT)
    if isinstance(request["authority"], str):
        certificates.show(request["authority"], KERNEL, ROOT)
    shown = strings(image["shown"]) if isinstance(image, dict) else []
    _scratch(request, shown, image=image is not None)
    _mounts(request, passed)
    with open(f"{BUNDLE}/config.json", "x", encoding="utf-8") as file:
        json.dump(config, file)
    return _view_group(held)


def _view_group(held: list[str]) -> list[str]:
    """Of the group that this process is in: its controllers show in the root then."""
    done = ["cgroup"] if held else []
    with contextlib.suppress(PermissionError):  # one control less, where what we are in refuses it
        KERNEL.unshare(abi.CLONE_NEWCGROUP)
        done.append("cgroup_namespace")
        cgroup_view.mount(held, KERNEL, ROOT)
    return done


def _scratch(request: Request, shown: list[str], *, image: bool) -> None:
    """The directories of the scratch tmpfs that a snapshot has not brought; those that are
    ``shown`` lie above what the image has there."""
    folders = [one for one in _counts(request["folders"]) if one[0] not in shown]
    modes = dict(_counts(request["folders"]))
    folders += [(f"{stack.ABOVE}{name}", 0o755) for name in shown]
    folders += [(f"{stack.ABOVE}{name}/u", modes[name]) for name in shown]
    # The changes of a workspace, which the sandbox's user is to own as much as what is below.
    folders += [("u", 0o755)] if request["cow"] is True else []
    found = var.Contents((), ()) if image else var.contents(ROOT)
    folders += [(path.lstrip("/"), mode) for path, mode in found.folders]
    uid = number(request["uid"])
    top = MERGED if request["shared"] is True else SCRATCH
    for name, mode in folders:
        if KERNEL.make_folder(f"{top}/{name}", mode):
            os.chown(f"{top}/{name}", uid, uid)
    for path, target in found.links:
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"{top}{path}")
            os.chown(f"{top}{path}", uid, uid, follow_symlinks=False)
    for name in shown:
        _show(name)


def _show(name: str) -> None:
    """At ``SHOWN``; an older snapshot has brought a directory all the same."""
    os.makedirs(f"{SHOWN}/{name}")
    if os.path.isdir(f"{SCRATCH}/{name}"):
        KERNEL.mount(f"{SCRATCH}/{name}", f"{SHOWN}/{name}", None, abi.MS_BIND)
        return
    lower = f"{IMAGE}/i{stack.PLACES[name]}"
    overlay.mount_paths(f"{SHOWN}/{name}", [lower], f"{SCRATCH}/{stack.ABOVE}{name}", KERNEL)


def _coming(request: Request) -> list[int]:
    """A detached mount of the layer to come, for the agent, which sees no other; empty where there
    is to be none, or the kernel has none."""
    bounds = f"size={request['disk']},nr_inodes={request['inodes']}"
    places = strings(request["stack"])
    found = stack.prepare(SCRATCH, places, bounds, KERNEL) if places else []
    close_all(found)
    flags = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC
    path = f"{SCRATCH}/{stack.NEXT}/{stack.OVER}"
    return [KERNEL.open_tree(abi.AT_FDCWD, path, flags)] if found else []


def _mounts(request: Request, passed: list[int]) -> None:
    """Attach what is passed along; the workspace is an overlay of the first, if it is so."""
    fds = iter(passed)
    cow = [f"{SCRATCH}/{name}" for name in strings(request["cow_copies"])]
    for name, is_dir, is_passed in _places(request["mounts"]):
        if not is_passed:
            continue
        target = f"{MOUNTS}/{name}"
        if is_dir:
            os.mkdir(target)
        else:
            root.write(target, b"")
        roots.attach(next(fds), target)
        if request["cow"] is True and name == "0":
            cow.append(target)
    if request["cow"] is True:
        # A copy lies over what it is a copy of, where that is there, too.
        overlay.mount_paths(COW, cow, SCRATCH, KERNEL)


def _filter(program: str) -> list[str]:
    """Put this process under a filter, which what it starts inherits. No no_new_privs, which a
    runtime is to set itself: root of a user namespace needs none for it."""
    if not program:
        return []
    seccomp.install(bytes.fromhex(program))
    return ["filter"]


def _run(argv: list[str], listener: int, coming: list[int], seconds: float) -> int:
    """The pid of the sandbox's first process. Raises OSError with what the runtime said."""
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # First to numbers that are neither's. Without a layer to come there is /dev/null in its place.
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in (listener, *(coming or [0]))]
    for fd, target in zip(given, (LISTENER_FD, COMING_FD), strict=True):
        actions.append((os.POSIX_SPAWN_DUP2, fd, target))
    runtime = os.posix_spawn(argv[0], argv, _ENVIRONMENT, file_actions=actions, setsigdef=_IGNORED)
    ended = os.pidfd_open(runtime)
    try:
        if not is_ready(ended, seconds):
            raise TimeoutError(f"{argv[0]} gave no answer within {seconds:g} s")
    finally:
        os.close(ended)
    status = os.waitstatus_to_exitcode(os.waitpid(runtime, 0)[1])
    if status:
        raise ChildProcessError(_said() or f"{argv[0]} ended with {status}")
    with open(PID_FILE, encoding="ascii") as file:
        return int(file.read())


def _said() -> str:
    """The end of what the runtime wrote to its log."""
    with contextlib.suppress(OSError), open(LOG, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_BYTES))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return _message(lines[-1]) if lines else ""
    return ""


def _message(line: str) -> str:
    """What a line of the log says; runsc writes errors as JSON objects, one after the other."""
    said, at = [], 0
    try:
        while at < len(line):
            told, at = json.JSONDecoder().raw_decode(line, at)
            said.append(str(told["msg"]))
    except (ValueError, TypeError, KeyError):
        return line
    return "; ".join(said)


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(str(one), str(other)) for one, other in value] if isinstance(value, list) else []


def _counts(value: object) -> list[tuple[str, int]]:
    return [(str(name), int(count)) for name, count in value] if isinstance(value, list) else []


def _places(value: object) -> list[tuple[str, bool, bool]]:
    places = value if isinstance(value, list) else []
    return [(str(name), is_dir is True, passed is True) for name, is_dir, passed in places]
