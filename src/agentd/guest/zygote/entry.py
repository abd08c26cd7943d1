"""How the zygote leaves the host behind: its user, its namespaces, its root; and who stays outside.

Standard library only.
"""

import contextlib
import os
import resource
import select
import signal
import socket

from agentd.guest.zygote import accounts, root
from agentd.guest.zygote.asked import strings
from agentd.guest.zygote.id_mapper import IdMapper
from agentd.guest.zygote.messages import receive, refuse
from agentd.guest.zygote.mounting import serve_mount
from agentd.linux import abi, process, subids
from agentd.linux.clone import Cloner
from agentd.linux.kernel import KERNEL
from agentd.linux.rights import close_all
from agentd.linux.title import set_title

CONTROL_FD = 3
MOUNTS_FD = 4


def prepare(config: dict[str, object]) -> Cloner:
    """Leave the host behind: become nobody, enter the namespaces, pivot into the root."""
    process.set_pdeathsig(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    set_title("agentd")
    cloner = Cloner()
    hidden = strings(config["hidden"])
    ids = config["ids"]
    files = root.read_etc(str(config["net"]), hidden)
    given = config.get("subids")
    files |= accounts.files(hidden, one_id=not (isinstance(ids, dict) or isinstance(given, dict)))
    configuration = strings(config["configuration"])
    if isinstance(ids, dict) and config["may_mount"]:
        trees = _enter_as_root(cloner, configuration, **ids)
    else:
        _enter_namespaces(_mapper(ids, given))
        trees = root.clone_trees(configuration)
    root.enter(trees, files)
    return cloner


def _enter_as_root(
    cloner: Cloner, configuration: list[str], own: int, start: int, end: int
) -> list[root.Tree]:
    """Become ``own``, root of a user namespace that has the ids from ``start`` to ``end``, too.

    Its maps take root to write: the first process does that, and becomes ``own`` as well then.
    """
    # Mounts are copied while that is still allowed, in a mount namespace of our own.
    KERNEL.unshare(abi.CLONE_NEWNS)
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    trees = root.clone_trees(configuration)
    _lift_user_limits()
    written, mapped = os.pipe2(os.O_CLOEXEC)
    os.setgroups([])
    os.setresgid(own, own, own)
    # The namespace belongs to whoever makes it, and what is in it counts as theirs: not as root's.
    os.setresuid(-1, own, -1)
    pid, pidfd = cloner.clone(abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID)
    if pid:
        os.setresuid(-1, 0, -1)
        maps = f"0 {own} 1\n" + _without(own, start, end)
        KERNEL.write(f"/proc/{pid}/gid_map", maps)
        KERNEL.write(f"/proc/{pid}/uid_map", maps)
        os.write(mapped, b"m")
        os.setresuid(own, own, own)
        process.set_no_new_privs()
        for fd in (pidfd, written, mapped):
            os.close(fd)
        _serve_mounts(pid)
    os.close(mapped)
    if os.read(written, 1) != b"m":
        os._exit(1)  # the first process has died, or could not
    os.close(written)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _become_zygote()
    return trees


def _without(own: int, start: int, end: int) -> str:
    """Lines of an id map: all ids from ``start`` to ``end`` but ``own``, as themselves."""
    parts = ((start, min(own, end)), (max(own + 1, start), end))
    return "".join(f"{first} {first} {after - first}\n" for first, after in parts if after > first)


def _lift_user_limits() -> None:
    """What sandboxes queue and lock counts as the zygote's, too, all together. Each has its own
    limits (``box``); this one would be shared by all of them."""
    for number in (
        resource.RLIMIT_NPROC,
        resource.RLIMIT_SIGPENDING,
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_MEMLOCK,
    ):
        with contextlib.suppress(ValueError, OSError):  # root of a container may not raise it
            resource.setrlimit(number, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _root_mapper(own: int, start: int, end: int) -> IdMapper:
    """Maps all ids of sandboxes for root without CAP_SYS_ADMIN, as in most containers, who may make
    a user namespace as any user does. This process is ``own`` from here on, and can still go back.

    To write a map takes CAP_SYS_ADMIN in the namespace, which its owner has, and CAP_SETUID or
    CAP_SETGID outside (new_idmap_permitted() in the kernel): the child is ``own`` for the one, and
    takes root's capabilities back for the other. Raises OSError.
    """
    _lift_user_limits()
    os.setgroups([])
    os.setresgid(own, own, own)
    os.setresuid(-1, own, -1)
    maps = f"0 {own} 1\n" + _without(own, start, end)
    target = os.getpid()

    def write() -> None:
        KERNEL.capset_effective()
        KERNEL.write(f"/proc/{target}/gid_map", maps)
        KERNEL.write(f"/proc/{target}/uid_map", maps)

    return IdMapper("ids", write)


def _subid_mapper(many: int, uids: int, gids: int) -> IdMapper:
    """Maps an ordinary user's subordinate ids: 0 inside is the caller, and 1 to ``many`` are those
    from ``uids`` and ``gids`` on. Raises OSError."""
    target, uid, gid = os.getpid(), os.geteuid(), os.getegid()
    lines = [(0, uid, 1), (1, uids, many)], [(0, gid, 1), (1, gids, many)]
    return IdMapper("subordinate ids", lambda: subids.map_ids(target, *lines))


def _mapper(ids: object, given: object) -> IdMapper | None:
    if isinstance(ids, dict):
        return _root_mapper(**ids)
    return _subid_mapper(**given) if isinstance(given, dict) else None


def _enter_namespaces(mapper: IdMapper | None) -> None:
    """As an ordinary user does; with ``mapper`` all ids of sandboxes are mapped, else the caller's
    alone."""
    uid, gid = os.geteuid(), os.getegid()
    KERNEL.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID)
    if mapper is not None:
        mapper.map()
    else:
        process.map_ids((0, uid), (0, gid))
    child = os.fork()
    if child:
        _serve_mounts(child)
    KERNEL.unshare(abi.CLONE_NEWNS)  # the first process keeps the host's tree, we pivot away
    _become_zygote()


def _become_zygote() -> None:
    os.close(MOUNTS_FD)
    process.set_pdeathsig(signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps ended sandboxes


def _serve_mounts(zygote: int) -> None:
    """The first process: answer ``{"path", "ro"}`` with a detached mount until the zygote ends."""
    os.close(CONTROL_FD)
    sock = socket.socket(fileno=MOUNTS_FD)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    ended = os.pidfd_open(zygote)
    poll.register(ended, select.POLLIN)
    while all(fd != ended for fd, _ in poll.poll()):
        try:
            request, fds = receive(sock)
        except EOFError:
            break
        except (OSError, ValueError, MemoryError) as error:
            refuse(sock, None, error)
            continue
        close_all(fds)
        serve_mount(sock, request)
    os.waitpid(zygote, 0)
    os._exit(0)
