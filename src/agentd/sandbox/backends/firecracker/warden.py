"""The warden of one machine: starts the jailer, watches Firecracker, and sees that nothing stays.

Started by the host with an empty environment: standard library, ``agentd.linux`` and
``agentd.guest``'s removal only. It is PID 1 of a pid namespace, so that the kernel ends jailer and
monitor when it dies, and it ends when the host's end of its socket closes, the host's death
included. The process that the host started stays outside as the guard: it waits for the warden,
then removes the jail, which the jailer leaves to its caller.

The host sends one message: ``{"argv","folder","root","binds":[names],"doors":N}`` with the files to
bind and then the cgroup's doors beside it. Answered by ``{"ok"}`` with Firecracker's pidfd, or by
``{"error","status","log"}``. Then ``{"op":"look"}`` is answered by ``{"running","status","log"}``.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
from typing import NoReturn

from agentd.guest.zygote.messages import receive, send
from agentd.guest.zygote.scratch import remove
from agentd.linux import abi, mounts, process
from agentd.linux.kernel import KERNEL
from agentd.linux.title import set_title
from agentd.sandbox.backends.vm.ring import LogRing

CONTROL_FD = 3
LOG_BYTES = 64 << 10
_TAIL = 8 << 10
# One read of the log: a guest that floods it is read no faster than all else is served.
_READ = 16 << 10
_ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_PID_FILE_BYTES = 32


class WardenError(Exception):
    """A step failed; the text names it."""


def main() -> None:
    """Serve until the host closes its end. Never returns."""
    os.closerange(CONTROL_FD + 1, os.sysconf("SC_OPEN_MAX"))  # what the host forgot to mark
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    try:
        try:
            request, fds = receive(control)
            names = _strings(request["binds"])
            # While we are in the namespace that the files are in.
            trees = [
                mounts.clone_tree(f"/proc/self/fd/{fd}", readonly=True) for fd in fds[: len(names)]
            ]
            _enter(str(request["folder"]))
            warden = Warden(control, str(request["root"]))
            warden.bind(names, trees)
            warden.start(_strings(request["argv"]), fds[len(names) :])
            for fd in fds:
                os.close(fd)
            warden.serve()
        except EOFError:
            pass
        except (OSError, ValueError, WardenError) as error:
            with contextlib.suppress(OSError):
                send(control, {"error": str(error), "status": None, "log": ""})
    finally:
        os._exit(0)


def _enter(folder: str) -> None:
    """Become PID 1 of a namespace; the first process goes no further than ``_guard``."""
    set_title("agentd-firecracker")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    KERNEL.unshare(abi.CLONE_NEWPID)
    alive, ours = os.pipe()
    pid = os.fork()
    if pid:
        _guard(pid, folder, ours)
    os.close(ours)
    # Sent from an ancestor namespace, SIGKILL reaches even a namespace's PID 1.
    process.set_pdeathsig(signal.SIGKILL)
    # The guard's end, which nobody else has, is closed where it has died before that line.
    os.set_blocking(alive, False)
    with contextlib.suppress(BlockingIOError):
        os.read(alive, 1)
        os._exit(1)
    # Not the guard: it could not remove what is a mount point in its own namespace.
    KERNEL.unshare(abi.CLONE_NEWNS)
    KERNEL.mount(None, "/", None, abi.MS_REC | abi.MS_SLAVE)


def _guard(warden: int, folder: str, keep: int) -> NoReturn:
    """Outside the namespace: what is on disk goes when all that used it has gone."""
    try:
        os.closerange(CONTROL_FD, keep)
        os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
        os.waitpid(warden, 0)
        remove(folder)
    finally:
        os._exit(0)


class Warden:
    def __init__(self, control: socket.socket, root: str) -> None:
        self._control = control
        self._root = root
        self._log = LogRing(LOG_BYTES)
        self._output: int | None = None
        self._jailer = 0
        self._monitor = 0
        self._status: int | None = None
        self._ended: dict[int, int] = {}  # of children that ended before we knew their part
        self._selector = selectors.DefaultSelector()

    def bind(self, names: list[str], trees: list[int]) -> None:
        """Binds files of the host, read-only, over the jail's empty ones, in our namespace alone.

        The jailer binds the whole of its root, these included, and makes that its root.
        """
        for name, tree in zip(names, trees, strict=True):
            target = f"{self._root}/{name}"
            KERNEL.move_mount(tree, "", abi.AT_FDCWD, target, abi.MOVE_MOUNT_F_EMPTY_PATH)
            os.close(tree)

    def start(self, argv: list[str], doors: list[int]) -> None:
        woken, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(woken, selectors.EVENT_READ, lambda: self._woken(woken))
        output, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(output, False)
        self._jailer = os.fork()
        if self._jailer == 0:
            _become(argv, doors, theirs)
        os.close(theirs)
        self._output = output
        self._selector.register(output, selectors.EVENT_READ, self._drain)

    def serve(self) -> None:
        """Raises EOFError once the host is gone."""
        self._selector.register(self._control, selectors.EVENT_READ, self._request)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _woken(self, woken: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(woken, 4096)
        self._collect()

    def _collect(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._drain()
            self._ended[pid] = os.waitstatus_to_exitcode(status)
            if pid == self._jailer:
                self._started()
            elif pid == self._monitor:
                self._status = self._ended[pid]

    def _started(self) -> None:
        """The jailer has gone: it left a monitor behind, or why it could not."""
        status = self._ended.pop(self._jailer)
        if status != 0:
            self._fail("the jailer failed", status)
            return
        try:
            self._monitor = self._find_monitor()
            pidfd = os.pidfd_open(self._monitor)
        except (OSError, ValueError) as error:
            status = next(iter(self._ended.values()), 0)
            self._fail(f"firecracker ended at once, or was not found: {error}", status)
            return
        send(self._control, {"ok": True}, [pidfd])
        os.close(pidfd)

    def _find_monitor(self) -> int:
        """Find the monitor by the jailer's file, which is in a folder of the monitor's by now.

        It must be our own child. Raises OSError and ValueError.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(f"{self._root}/firecracker.pid", flags)
        try:
            pid = int(os.read(fd, _PID_FILE_BYTES))
        finally:
            os.close(fd)
        if pid <= 1:
            raise ValueError(f"{pid} is no pid")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return pid

    def _fail(self, what: str, status: int) -> None:
        self._status = status
        send(self._control, {"error": what, **self._seen()})

    def _request(self) -> None:
        receive(self._control)
        self._collect()  # the host may have seen the end before the signal came here
        self._drain()
        send(self._control, self._seen())

    def _seen(self) -> dict[str, object]:
        running = bool(self._monitor) and self._status is None
        return {"running": running, "status": self._status, "log": self._log.text(_TAIL)}

    def _drain(self) -> None:
        for _ in range(LOG_BYTES // _READ):
            if self._output is None:
                return
            try:
                data = os.read(self._output, _READ)
            except BlockingIOError:
                return
            if data:
                self._log.add(data)
                continue
            self._selector.unregister(self._output)
            os.close(self._output)
            self._output = None


def _become(argv: list[str], doors: list[int], output: int) -> NoReturn:
    """The jailer: in the machine's cgroup, with nothing open but the log."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for standard in (1, 2):
            os.dup2(output, standard)
        for fd in doors:
            os.write(fd, b"0")
        words = [word for one in argv for word in (_group() if one == "{cgroup}" else [one])]
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.execve(words[0], words, _ENVIRONMENT)  # noqa: S606
    except OSError as error:
        os.write(2, f"agentd: cannot start {argv[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _group() -> list[str]:
    """The jailer moves the monitor into a group it is told of: the one that we are in already."""
    with open("/proc/self/cgroup", encoding="ascii") as file:
        for line in file:
            if line.startswith("0::/") and (path := line[4:].strip()):
                return ["--cgroup-version", "2", "--parent-cgroup", path]
    return []


def _strings(value: object) -> list[str]:
    if not isinstance(value, list):
        raise WardenError(f"{value!r} is not a list")
    return [str(item) for item in value]


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
