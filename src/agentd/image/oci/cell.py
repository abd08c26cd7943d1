"""Runs one program on what nobody vouches for, shut in: a process of its own, ``main``.

The program sees the host's programs, read-only, and what it was given; it writes in one folder and
in a /tmp of its own. As root it is a user that owns nothing on this machine. Standard library,
``agentd.linux`` and the zygote's root only: it is started without site-packages.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import sys
from typing import NoReturn

from agentd.guest.zygote import root
from agentd.linux import (
    abi,
    anyip,
    caps,
    idmap,
    landlock,
    mounts,
    net,
    privileges,
    process,
    rlimits,
    seccomp,
)
from agentd.linux.kernel import KERNEL

#: Where the program writes; it begins there.
WORK = "/mnt/work"
#: As whom root has the program run, and to whom what it writes belongs then: above the blocks of
#: sandboxes (``ids.first``), and no user of a host, whose processes could trace it.
USER = 2_147_000_000
#: What the cell itself ends with where it could not be built.
NOT_BUILT = 125
_NAMESPACES = (
    abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID | abi.CLONE_NEWIPC | abi.CLONE_NEWUTS
)
# Whom a registry's certificate is checked against.
_TRUSTED = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/ssl/certs",
)
_TMP = "mode=1777,size=64m,nr_inodes=4k"

Config = dict[str, object]


def main() -> NoReturn:
    """Read the config from stdin (``tools.run`` writes it), and end as the program ends."""
    try:
        config = json.load(sys.stdin)
        process.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != config["parent"]:
            os._exit(NOT_BUILT)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        child = _enter(config)
        status = os.waitpid(child, 0)[1]
    except OSError as error:
        print(f"the cell could not be built: {error}", file=sys.stderr, flush=True)
        os._exit(NOT_BUILT)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)  # of a signal as shells have it


def own_user() -> bool:
    """Return whether the program is another user than this process is."""
    return privileges.may_mount() and privileges.may_set_groups()


def _enter(config: Config) -> int:
    """The pid of the child that becomes the program, as PID 1 of a namespace of its own."""
    namespaces = _NAMESPACES | (0 if config["host_net"] else abi.CLONE_NEWNET)
    if own_user():
        KERNEL.unshare(abi.CLONE_NEWNS)
        KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
        trees = _trees(config, foreign=True)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        # A change of user clears both: its maps would be root's to write.
        process.set_dumpable(True)
        process.set_pdeathsig(signal.SIGKILL)
        _unshare(namespaces)
    else:
        _unshare(namespaces)
        KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
        trees = _trees(config, foreign=False)
    for control in _list(config["controls"]):
        _listen(_list(config["entrances"]), int(str(control)))
    child = os.fork()
    if child:
        return child
    try:
        _become(config, trees)
    except OSError as error:
        print(f"the cell could not be built: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(NOT_BUILT)


def _unshare(namespaces: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    KERNEL.unshare(namespaces)
    process.map_ids((0, uid), (0, gid))


def _listen(entrances: list[object], control: int) -> None:
    """Let what is dialled at these of this namespace, which leads nowhere else, arrive at whoever
    has the other end of ``control``. Of IPv6 there may be none."""
    net.loopback_up()
    with socket.socket(fileno=control) as told, contextlib.ExitStack() as stack:
        made = {}
        for number, each in enumerate(entrances):
            address, port = _list(each)
            try:
                family = socket.AF_INET6 if ":" in str(address) else socket.AF_INET
                listener = stack.enter_context(socket.socket(family))
                listener.bind((str(address), int(str(port))))
            except OSError as error:
                if ":" in str(address) and error.errno in anyip.NO_IPV6:
                    continue
                raise
            listener.listen()
            made[number] = listener.fileno()
        socket.send_fds(told, [bytes(made)], list(made.values()))


def _trees(config: Config, *, foreign: bool) -> list[root.Tree]:
    """The host's programs, the folder that is written, and what else is read; ``foreign``: by a
    user who does not own it, so that it is shown as that one's."""
    trees = root.clone_trees(_TRUSTED)
    trees.append((WORK, mounts.clone_tree(str(config["work"]), readonly=False, recursive=False)))
    for target, source in _pairs(config["reads"]):
        trees.append((target, _readable(source, foreign=foreign)))
    return trees


def _readable(source: str, *, foreign: bool) -> int:
    if foreign:
        owner = os.stat(source)
        userns = idmap.userns_fd(owner.st_uid, owner.st_gid, USER)
        try:
            # Not every file system can: then what everybody may read is read.
            with contextlib.suppress(OSError):
                return mounts.clone_tree(source, readonly=True, idmap_fd=userns)
        finally:
            os.close(userns)
    return mounts.clone_tree(source, readonly=True)


def _become(config: Config, trees: list[root.Tree]) -> None:
    process.set_pdeathsig(signal.SIGKILL)
    files = root.read_etc("host" if config["host_net"] else "none")
    files |= {path: base64.b64decode(data) for path, data in _pairs(config["files"])}
    root.enter(trees, files)
    KERNEL.mount("tmpfs", "/tmp", "tmpfs", abi.MS_NOSUID | abi.MS_NODEV, _TMP)
    rlimits.apply({"core": 0, "message_queues": 0} | _file_size(config))
    process.set_no_new_privs()
    caps.drop_bounding_if_allowed()
    caps.drop_all()
    if landlock.abi_version():
        with landlock.Ruleset(handle_net=False) as rules:
            rules.allow_path("/", landlock.READ | landlock.EXEC)
            for path in (WORK, "/tmp"):
                rules.allow_path(path, landlock.WRITE)
            for name in ("null", "tty"):
                rules.allow_path(f"/dev/{name}", landlock.WRITE)
            rules.restrict()
    filter_ = seccomp.build("unpack")
    os.chdir(WORK)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    argv = [str(word) for word in _list(config["argv"])]
    seccomp.install(filter_)
    os.execve(argv[0], argv, dict(_pairs(config["env"])))  # noqa: S606  (a path of ours, no shell)


def _file_size(config: Config) -> dict[str, int]:
    """Beyond it a write fails, and the program says so."""
    most = config["file_size"]
    if not isinstance(most, int):
        return {}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return {"file_size": most}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(str(a), str(b)) for a, b in value.items()] if isinstance(value, dict) else []
