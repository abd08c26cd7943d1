"""The launcher: a small process below which OCI runtimes start sandboxes.

Started by the host with an empty environment, so standard library only. It is PID 1 of a pid
namespace: when it dies the kernel ends every sandbox, and it ends when the host's end of its
socket closes. For each sandbox it clones a **builder**, in a user and a mount namespace of its own:
that makes the bundle, on a file system in memory that nobody else sees, runs the runtime as root of
that user namespace alone, hands out a pidfd of the sandbox's first process, and ends. A bundle and
the state of a runtime end with the processes that see them: there is nothing to sweep.

Requests come over a SEQPACKET socket, one JSON object each, descriptors beside it:

``{"op":"start","maps":[[inside,outside,count],..],"id":..,"configuration":[..],..}``
    Descriptors: the agent's listener, the socket at which the builder answers, mounts. That answers
    ``{"ok"}`` with the pidfd, or ``{"error"}``. See ``bundle`` for the rest of the fields.
``{"op":"mount","n":N,"path":..,"ro":bool}``
    A detached mount, made with this user's rights.
``{"n":N,"layer":..}``
    What a fork takes (``guest/zygote/restack.py``).
``{"n":N,"reserve":true}``
    A process that takes room on a disk (``guest/zygote/reserve.py``).
"""

import codecs
import contextlib
import os
import signal
import socket
import sys
from typing import NoReturn

from agentd.guest.zygote import reserve, restack, root
from agentd.guest.zygote.maps import Maps
from agentd.guest.zygote.messages import receive, refuse, send
from agentd.guest.zygote.mounting import serve_mount
from agentd.linux import abi, privileges, process
from agentd.linux.clone import Cloner
from agentd.linux.kernel import KERNEL
from agentd.linux.rights import close_all
from agentd.linux.title import set_title
from agentd.sandbox.backends.oci import bundle

CONTROL_FD = 3
_CGROUPS = "/sys/fs/cgroup"
_UNIFIED = f"{_CGROUPS}/unified"
_PRIVATE = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
_ENCODINGS = ("ascii", "utf-8", "latin-1", "unicode_escape")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> None:
    """Serve until the host closes its end. Never returns."""
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    process.raise_file_limit()
    os.umask(0o022)
    for encoding in _ENCODINGS:
        codecs.lookup(encoding)  # a builder may not read this interpreter's files any more
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    try:
        launcher = _Launcher(control, _enter(control))
    except Exception as error:
        send(control, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    send(control, {"ok": True})
    launcher.serve()


def _enter(control: socket.socket) -> Cloner:
    """Become PID 1 of a pid namespace, whose /proc is this process's. Raises OSError."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    set_title("agentd")
    cloner = Cloner()
    flags = abi.CLONE_NEWPID | abi.CLONE_NEWNS
    uid, gid = os.geteuid(), os.getegid()
    if not privileges.may_mount():
        flags |= abi.CLONE_NEWUSER
    pid, pidfd = cloner.clone(flags)
    if pid:
        _guard(control, pid, pidfd)
    if flags & abi.CLONE_NEWUSER:
        process.map_ids((0, uid), (0, gid))
    process.set_pdeathsig(signal.SIGKILL)
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    KERNEL.mount("proc", "/proc", "proc", _PRIVATE)
    _close_cgroups()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps builders and sandboxes
    return cloner


def _close_cgroups() -> None:
    """No runtime makes a control group: the sandbox's is the host's, and who is told that it may
    lack the right goes on without. crun takes a controller in the second hierarchy for an error.
    """
    if os.path.isdir(_CGROUPS):
        KERNEL.mount_setattr(abi.AT_FDCWD, _CGROUPS, abi.AT_RECURSIVE, set_=abi.MOUNT_ATTR_RDONLY)
    if os.path.isdir(_UNIFIED):
        KERNEL.mount("tmpfs", _UNIFIED, "tmpfs", _PRIVATE | abi.MS_RDONLY, "mode=0555,size=4k")


def _guard(control: socket.socket, pid: int, pidfd: int) -> NoReturn:
    """The process that the host started: it waits for the launcher, as the host waits for it."""
    control.close()
    os.close(pidfd)
    os.waitpid(pid, 0)
    os._exit(0)


class _Launcher:
    """Answers requests one by one; a builder answers for itself."""

    def __init__(self, control: socket.socket, cloner: Cloner) -> None:
        self._control = control
        self._cloner = cloner

    def serve(self) -> NoReturn:
        while True:
            try:
                request, fds = receive(self._control)
            except EOFError:
                os._exit(0)
            except (OSError, ValueError, MemoryError) as error:
                refuse(self._control, None, error)
                continue
            try:
                if "layer" in request:
                    restack.answer(self._control, request, fds, bundle.STAGE)
                    fds = []
                elif "reserve" in request:
                    reserve.answer(self._control, request, fds)
                    fds = []
                elif request.get("op") == "mount":
                    serve_mount(self._control, request)
                else:
                    self._start(request, fds)
            finally:
                close_all(fds)

    def _start(self, request: dict[str, object], fds: list[int]) -> None:
        """Clone a builder. What fails here is answered in its place."""
        try:
            answers = socket.socket(fileno=os.dup(fds[1]))
        except OSError as error:  # all sandboxes would end with us
            refuse(self._control, None, error)
            return
        trees: list[root.Tree] = []
        with answers:
            try:
                # With this process's rights: a builder of root's may not go everywhere.
                trees = bundle.clone_trees(request)
                maps = Maps(*_lines(request["maps"]))
                pid = self._clone(request, maps)
                if pid == 0:
                    self._build(request, fds, trees, maps)
                maps.write(pid)
            except Exception as error:
                refuse(answers, None, error)
            finally:
                close_all(fd for _, fd in trees)

    def _clone(self, request: dict[str, object], maps: Maps) -> int:
        """As the sandbox's own user outside, to whom its user namespace belongs then."""
        owner = request["owner"]
        pid = -1
        if isinstance(owner, int):
            os.setresgid(-1, owner, -1)
            os.setresuid(-1, owner, -1)
        try:
            pid, pidfd = self._cloner.clone(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
        except BaseException:
            maps.close()
            raise
        finally:
            if pid != 0 and isinstance(owner, int):
                os.setresuid(-1, 0, -1)
                os.setresgid(-1, 0, -1)
                process.set_pdeathsig(signal.SIGKILL)  # a change of user has cleared it
        if pid:
            os.close(pidfd)
        return pid

    def _build(
        self, request: dict[str, object], fds: list[int], trees: list[root.Tree], maps: Maps
    ) -> NoReturn:
        try:
            self._control.close()
            maps.await_written()
            with contextlib.suppress(PermissionError):  # without root they cannot be changed
                os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            bundle.build(request, fds, trees)
        finally:
            os._exit(1)


def _lines(value: object) -> list[tuple[int, int, int]]:
    found = value if isinstance(value, list) else []
    return [(int(inside), int(outside), int(count)) for inside, outside, count in found]


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
