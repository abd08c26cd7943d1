"""The zygote: a small process in a read-only root that clones one sandbox a request.

Started with an empty environment by ``python -I -S -E``, so standard library only. It holds no
secret: every sandbox begins as a copy of its memory. What a caller asked for (environment, names,
mounts) is read by the sandbox itself, from its own socket, once it was cloned. As root the zygote
first becomes a user that owns nothing. It is PID 1 of a pid namespace, so that when it dies the
kernel ends every sandbox.

Requests come over a SEQPACKET socket: one JSON object each, descriptors beside it. No request and
no answer that fails ends the zygote: all sandboxes would end with it. The process
that the host started stays outside the root, in the same user namespace: without root only it can
make copies of the host's mounts (``_serve_mounts``).
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys

from agentd.guest import agent
from agentd.guest.zygote import box as boxes
from agentd.guest.zygote import grouping, holes, immortal, messages, root
from agentd.guest.zygote.group import enter_group
from agentd.guest.zygote.messages import close_all, receive, refuse, reply
from agentd.guest.zygote.rehearsal import rehearse, rehearse_wall
from agentd.linux import abi, caps, clone, mounts, paths, process, seccomp
from agentd.linux.clone import Cloner
from agentd.linux.kernel import KERNEL
from agentd.linux.title import set_title

CONTROL_FD = 3
MOUNTS_FD = 4
# Milliseconds without a request after which there is time to clone ahead.
_IDLE_MS = 5
# Requests after which time is taken, if there was none, for what makes all later clones cheaper.
_BUSY = 16
# Enough for the interpreter to specialise what a command runs through.
_REHEARSALS = 12
# More than the keys that a class's instances share have room for: each instance made takes from it,
# which is written down there.
_WALLS = 32
# Whose code is moved together whether a rehearsal comes by or not.
_OWN = (__file__, messages.__file__, boxes.__file__, agent.__file__, clone.__file__)


def main() -> None:
    """Serve until the host closes its end. Never returns."""
    os.closerange(MOUNTS_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    # Descriptors on their way are counted by user, and none is passed on above the sender's limit:
    # ours must not be the first that those of the sandboxes reach. Each of them sets its own.
    process.raise_file_limit()
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    os.set_inheritable(MOUNTS_FD, False)
    try:
        config, _ = receive(control)
        filter_ = seccomp.build("sandbox")
        zygote = _Zygote(control, _prepare(config), config, filter_)
        for fact in (caps.last_capability, root.masks):
            fact()  # found out once, by the user that sandboxes have, for all of them
    except Exception as error:
        reply(control, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    agent.preload()
    gc.collect()
    gc.freeze()
    # Its digest is the host's business: hashlib would map OpenSSL into every sandbox.
    reply(control, {"ok": True, "filter": filter_.hex()})
    zygote.serve()


class _Zygote:
    """Answers requests one by one. Between them it clones one ahead, and hands it to the host.

    A spare is in its namespaces, prepared for a plain request, not yet confined, and never used.
    The host sends it such a request itself, and then asks for the next one.
    """

    def __init__(
        self,
        control: socket.socket,
        cloner: Cloner,
        config: dict[str, object],
        filter_: bytes,
    ) -> None:
        self._control = control
        self._cloner = cloner
        self._filter = filter_
        self._flags = boxes.NAMESPACES | (abi.CLONE_NEWNET if config["net"] == "none" else 0)
        plain = config["plain"]
        self._plain = plain if isinstance(plain, dict) else None
        # Who asks once may never ask again, and shall not pay for a spare.
        self._served = 0
        self._spare_from = 1
        self._spare_out = False
        self._seasoned = False
        self._held: list[object] = []

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while True:
            wanted = self._plain is not None and not self._spare_out
            if wanted and self._served > self._spare_from and not poll.poll(_IDLE_MS):
                self._prepare_spare()
            try:
                request, fds = receive(self._control)
            except EOFError:
                os._exit(0)
            except (OSError, ValueError, MemoryError) as error:
                refuse(self._control, None, error)
                continue
            self._served += 1
            if self._served == _BUSY:
                self._season()
            if "next" in request:
                self._spare_out = False
                close_all(fds)
            else:
                self._spawn(request, fds)

    def _season(self) -> None:
        """Once: what every clone would do for itself, and would copy pages for. Some 0.1 s."""
        if self._seasoned:
            return
        self._seasoned = True
        with contextlib.suppress(OSError, MemoryError):  # the clones are dearer then, no more
            self._improve()

    def _improve(self) -> None:
        gc.unfreeze()
        self._held.append(self._group())
        self._rehearse(_WALLS // 8)
        gc.collect()
        immortal.immortalise()
        gc.freeze()
        # What immortal objects are asked about is found in caches from now on.
        self._rehearse(_WALLS)
        gc.freeze()
        gc.collect()  # empties the lists of free objects, each of which is another hole
        self._held.append(holes.fill())

    def _group(self) -> list[object]:
        """Move the code together that a sandbox runs, what it runs for its set-up first.

        Before any rehearsal: code that runs for the first time is sure to write to itself.
        """
        before = grouping.watch()
        own = [code for code, _ in before if code.co_filename in _OWN]
        if self._plain is not None:
            rehearse_wall(self._plain, self._filter)
        rehearse(0)
        _rehearse_messages()
        setup = grouping.written_to(before)
        rehearse(1)
        return grouping.group([*setup, *own, *grouping.written_to(before)])

    def _rehearse(self, walls: int) -> None:
        rehearse(_REHEARSALS)
        if self._plain is not None:
            for _ in range(walls):
                rehearse_wall(self._plain, self._filter)
                rehearse(0)
                _rehearse_messages()

    def _prepare_spare(self) -> None:
        # Where it fails, the next request clones for itself and says what is wrong.
        self._spare_from = self._served
        self._season()
        try:
            host, listener = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return
        with host, listener:
            try:
                pidfd = self._clone(listener, host=host)
            except (OSError, MemoryError):
                return
            self._spare_out = self._hand_over({"spare": True}, pidfd, [host.fileno()])

    def _spawn(self, request: dict[str, object], fds: list[int]) -> None:
        """Start one sandbox; answer with its pidfd, and its scratch tmpfs if the host needs it."""
        number = request.get("n")
        scratch: list[int] = []
        try:
            # The request is ours, but its descriptor may have been lost on the way.
            listener = socket.socket(fileno=fds.pop(0))
            with listener:
                if request["cow"]:
                    scratch.append(_scratch_mount(request))
                pidfd = self._clone(listener, scratch)
            self._hand_over({"n": number, "ok": True}, pidfd, scratch)
        except Exception as error:
            refuse(self._control, number, error)
        finally:
            close_all([*fds, *scratch])

    def _hand_over(self, message: dict[str, object], pidfd: int, fds: list[int]) -> bool:
        """Give the host a clone. One that cannot be given is ended, and False."""
        try:
            reply(self._control, message, [pidfd, *fds])
        except OSError as error:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            if "n" in message:
                refuse(self._control, message["n"], error)
            return False
        finally:
            os.close(pidfd)
        return True

    def _clone(
        self,
        listener: socket.socket,
        scratch: list[int] | None = None,
        host: socket.socket | None = None,
    ) -> int:
        """The pidfd of a sandbox to be; ``host`` is the other end of one made ahead."""
        pid, pidfd = self._cloner.clone(self._flags)
        if pid == 0:
            try:
                self._control.close()
                if host is not None:
                    host.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                gc.enable()
                _box(listener, scratch or [], self._filter, self._plain if host else None)
            finally:
                os._exit(1)
        return pidfd


def _rehearse_messages() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        reply(ours, {"ok": True}, [theirs.fileno()])
        for fd in receive(theirs)[1]:
            os.close(fd)


def _prepare(config: dict[str, object]) -> Cloner:
    """Leave the host behind: become nobody, enter the namespaces, pivot into the root."""
    process.set_pdeathsig(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    set_title("agentd")
    cloner = Cloner()
    files = root.read_etc(config["net"] == "host")
    uid, gid = config["uid"], config["gid"]
    trees = None
    if isinstance(uid, int) and isinstance(gid, int):
        trees = _as_root(uid, gid)
    _enter_namespaces()
    root.enter(trees if trees is not None else root.clone_trees(), files)
    return cloner


def _as_root(uid: int, gid: int) -> list[root.Tree]:
    # Mounts are copied while that is still allowed, in a mount namespace of our own.
    KERNEL.unshare(abi.CLONE_NEWNS)
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    trees = root.clone_trees()
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    process.set_dumpable(True)  # setuid cleared it, and uid_map is then root's
    return trees


def _enter_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    KERNEL.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS | abi.CLONE_NEWPID)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/gid_map", f"0 {gid} 1")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    child = os.fork()
    if child:
        _serve_mounts(child)
    os.close(MOUNTS_FD)
    process.set_pdeathsig(signal.SIGKILL)
    KERNEL.unshare(abi.CLONE_NEWNS)  # the first process keeps the host's tree, we pivot away
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
        _serve_mount(sock, request)
    os.waitpid(zygote, 0)
    os._exit(0)


def _serve_mount(sock: socket.socket, request: dict[str, object]) -> None:
    number = request.get("n")
    try:
        source = paths.open_plain(str(request["path"]))
        try:
            fd = mounts.clone_tree(source, readonly=bool(request["ro"]))
        finally:
            os.close(source)
        try:
            reply(sock, {"n": number, "ok": True}, [fd])
        finally:
            os.close(fd)
    except Exception as error:
        refuse(sock, number, error)


def _scratch_mount(request: dict[str, object]) -> int:
    fd = KERNEL.fsopen("tmpfs")
    try:
        options = {"mode": "0755", "size": request["disk"], "nr_inodes": request["inodes"]}
        for key, value in options.items():
            KERNEL.fsconfig(fd, abi.FSCONFIG_SET_STRING, key, str(value))
        KERNEL.fsconfig(fd, abi.FSCONFIG_CMD_CREATE, None, None)
        return KERNEL.fsmount(fd, abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV)
    finally:
        os.close(fd)


def _box(
    listener: socket.socket,
    scratch: list[int],
    filter_: bytes,
    plain: dict[str, object] | None,
) -> None:
    """The child: read what is asked for, confine, then be the agent. Never returns.

    With ``plain`` it is one made ahead, and does before it reads what all such requests have in
    common; where that fails it ends without a word, and the host asks for another.
    """
    prepared = made = None
    if plain is not None:
        prepared = boxes.Prepared(plain)
        rehearse(1)
        made = agent.Ready(pid1=True)
    try:
        request, passed = receive(listener)
        fds = [listener.fileno(), *passed, *scratch]
        if scratch:
            request["scratch_fd"] = len(fds) - 1
        ready = made or agent.Ready(pid1=True)  # before Landlock: it opens what is closed then
        done = boxes.confine(
            request, fds, filter_, prepared=prepared, enter=lambda: enter_group(listener)
        )
        for fd in fds[1:]:
            os.close(fd)
        env = request["env"]
        listener.send(json.dumps({"controls": done}).encode())
    except EOFError:  # nobody wants it any more
        os._exit(0)
    except Exception as error:
        refuse(listener, None, error)
        os._exit(1)
    ready.serve(listener, env if isinstance(env, dict) else {})
    os._exit(0)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
