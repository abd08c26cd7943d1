"""One call of ``python.exec``, in the sandbox: finds or starts a context's kernel, and asks it."""

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
import types
from typing import Any, NoReturn

MAX_CONTEXTS = 16
_RUN = "agentd.capability.inside.python_run"
# How long an idle kernel may take to answer before it counts as one whose client has gone.
PATIENCE = ((1.0, signal.SIGINT), (3.0, signal.SIGINT), (10.0, None))
_BOOT = """\
import sys
if sys.path and not sys.path[0]:
    del sys.path[0]
import types
for name, text in SOURCES:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(text, "<" + name + ">", "exec"), module.__dict__)
module.main(sys.argv[1])
"""


class KernelFailed(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class KernelProcess:
    """A kernel's process, which can be interrupted and ended."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd

    def close(self) -> None:
        os.close(self.pidfd)

    def signal(self, number: int) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, number)

    def kill(self) -> None:
        """Kill it with all of its group, and wait until it is gone."""
        with contextlib.suppress(OSError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        self.signal(signal.SIGKILL)
        self.wait(10.0)

    def wait(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(max(0, seconds) * 1000))


class RunningKernel(KernelProcess):
    """One that is spoken with: the process that listens on its context's socket."""

    def __init__(self, connection: socket.socket, pid: int, pidfd: int) -> None:
        super().__init__(pid, pidfd)
        self.connection = connection

    def close(self) -> None:
        self.connection.close()
        super().close()


class Context:
    """Its files: ``NAME.sock``, and ``NAME.lock``, held by who runs code in it; that has the number
    of its process."""

    def __init__(self, name: str, deadline: float) -> None:
        self.folder = _folder()
        self.path = os.path.join(self.folder, name + ".sock")
        self.deadline = deadline
        self._lock = os.open(
            os.path.join(self.folder, name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )

    def try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def lock(self) -> None:
        pause = 0.002
        while not self.try_lock():
            if time.monotonic() + pause > self.deadline:
                raise KernelFailed(
                    "busy", "other code runs in the context, and went on for too long"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    def find(self) -> "RunningKernel | None":
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(2.0)
            connection.connect(self.path)
            found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = struct.unpack("3i", found)[0]
            pidfd = self._opened(pid)
            if pidfd is not None:
                return RunningKernel(connection, pid, pidfd)
            connection.close()
        except (FileNotFoundError, ConnectionError, ProcessLookupError):
            connection.close()
        except OSError as error:
            connection.close()
            raise KernelFailed(
                "busy", "too many calls wait for the context: " + str(error)
            ) from None
        return None

    def process(self) -> "KernelProcess | None":
        """The same without a connection, which is not taken while code runs: those of everybody who
        only looked would wait there, until there is room for nobody who wants to end it."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(os.pread(self._lock, 32, 0))
            pidfd = self._opened(pid)
            if pidfd is not None:
                return KernelProcess(pid, pidfd)
        return self.find()

    def _opened(self, pid: int) -> "int | None":
        """A pidfd of it, if it is this context's kernel: a child of a dead one may still hold its
        socket, and its number may be another's. Raises OSError."""
        pidfd = os.pidfd_open(pid)
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if self.path.encode() in file.read(1 << 20).split(b"\0"):
                    return pidfd
        except BaseException:
            os.close(pidfd)
            raise
        os.close(pidfd)
        return None

    def start(self, sources: "list[list[str]]") -> RunningKernel:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.ftruncate(self._lock, 0)
        if (
            len([name for name in os.listdir(self.folder) if name.endswith(".sock")])
            >= MAX_CONTEXTS
        ):
            self._sweep()
        boot = f"SOURCES = {sources!r}\n" + _BOOT
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        # In a session of its own: the end of this command is not its end.
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", boot, self.path],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)],
            setsid=True,
        )
        os.close(null)
        with contextlib.suppress(OSError):  # no room: it is found by its socket
            os.pwrite(self._lock, b"%-20d" % pid, 0)
        while time.monotonic() < self.deadline:
            found = self.find()
            if found is not None:
                return found
            if os.waitpid(pid, os.WNOHANG)[0]:
                raise KernelFailed("kernel_failed", "the interpreter ended before it was ready")
            time.sleep(0.002)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        raise KernelFailed("timeout", "the interpreter was not ready in time")

    def _sweep(self) -> None:
        """Forget the contexts whose kernel is gone. Raises KernelFailed where none is."""
        alive = 0
        for name in _names(self.folder):
            other = Context(name, 0)
            found = other.process()
            if found is not None:
                found.close()
                alive += 1
            elif other.try_lock():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(other.path)
            other.close()
        if alive >= MAX_CONTEXTS:
            raise KernelFailed("too_many_contexts", f"there are {MAX_CONTEXTS} contexts: reset one")

    def close(self) -> None:
        os.close(self._lock)


def run(asked: "dict[str, Any]", context: Context) -> "dict[str, Any]":
    # Sent along by the host: one argument could not hold all of this program.
    module = types.ModuleType(_RUN)
    sys.modules[_RUN] = module
    exec(compile(asked["run_source"], f"<{_RUN}>", "exec"), module.__dict__)  # noqa: S102
    from agentd.capability.inside.python_run import Run

    reset = False
    if asked["reset"]:
        reset = _end(context)
    context.lock()
    kernel, streams, name, lost = _attach(context, asked["sources"])
    code = json.dumps({"code": asked["code"]}).encode()
    work = Run(kernel, streams, asked["max_output"], context.deadline)
    try:
        kernel.connection.settimeout(max(0.1, context.deadline - time.monotonic()))
        kernel.connection.sendall(struct.pack("!I", len(code)) + code)
        kernel.connection.settimeout(5.0)
        answer = work.until_done()
        if work.timed_out and answer.get("status") == "interrupted":
            answer["status"] = "timeout"
    except (OSError, ValueError):
        kernel.kill()
        reset = True
        answer = {
            "status": "timeout" if work.timed_out else "error",
            "error": _death(work.timed_out),
        }
    work.drain()
    kernel.close()
    return {**answer, "kernel": name, "reset": reset or lost, "truncated": work.truncated}


def _death(timed_out: bool) -> "dict[str, str]":
    if timed_out:
        return {"name": "Timeout", "value": "the code ignored the interrupt", "traceback": ""}
    value = "the interpreter ended: the code ended it, it crashed, or it was killed"
    return {"name": "KernelDied", "value": value, "traceback": ""}


def _attach(
    context: Context, sources: "list[list[str]]"
) -> "tuple[RunningKernel, list[int], str, bool]":
    """The kernel, its streams, its name; and whether one of before was lost."""
    kernel, lost = context.find(), False
    if kernel is not None:
        try:
            return (*_hello(kernel, context.deadline, PATIENCE), False)
        except (OSError, ValueError):
            kernel.kill()
            kernel.close()
            lost = True
    kernel = context.start(sources)
    try:
        return (*_hello(kernel, context.deadline, ()), lost)
    except (OSError, ValueError):
        kernel.kill()
        kernel.close()
        raise KernelFailed("kernel_failed", "the interpreter ended before it was ready") from None


def _hello(
    kernel: RunningKernel, deadline: float, patience: "tuple[tuple[float, int | None], ...]"
) -> "tuple[RunningKernel, list[int], str]":
    """Greet it, under the lock: where it does not answer, it runs code that nobody waits for."""
    begun = time.monotonic()
    poll = select.poll()
    poll.register(kernel.connection, select.POLLIN)
    poll.register(kernel.pidfd, select.POLLIN)
    for wait, number in (*patience, (deadline - begun, None)):
        after = begun + wait
        left = min(after, deadline) - time.monotonic()
        if poll.poll(max(0, left) * 1000):
            break
        if number is not None:
            kernel.signal(number)
        elif after < deadline:
            raise ConnectionError("the kernel ended")
    else:
        kernel.close()
        raise KernelFailed("busy", "the interpreter was not ready in time")
    data, fds, _, _ = socket.recv_fds(kernel.connection, 4096, 2)
    if len(fds) != 2 or len(data) < 4:
        raise ConnectionError("the kernel ended")
    for fd in fds:
        os.set_blocking(fd, False)
    return kernel, list(fds), str(json.loads(data[4:])["kernel"])


def interrupt(asked: "dict[str, Any]", context: Context) -> "dict[str, Any]":
    """Interrupt what runs; where nobody has the lock nothing runs."""
    kernel = None if context.try_lock() else context.process()
    if kernel is not None:
        kernel.signal(signal.SIGINT)
        kernel.close()
    return {"status": "ok", "interrupted": kernel is not None}


def reset(asked: "dict[str, Any]", context: Context) -> "dict[str, Any]":
    return {"status": "ok", "reset": _end(context)}


def list_all(asked: "dict[str, Any]", context: Context) -> "dict[str, Any]":
    found = []
    for name in _names(context.folder):
        other = Context(name, 0)
        busy = not other.try_lock()
        kernel = other.process()
        if kernel is not None:
            found.append({"context": name, "pid": kernel.pid, "busy": busy})
            kernel.close()
        other.close()
    return {"status": "ok", "contexts": found}


def _end(context: Context) -> bool:
    kernel = context.process()
    if kernel is None:
        return False
    kernel.kill()
    kernel.close()
    return True


def _names(folder: str) -> "list[str]":
    found = sorted(name[:-5] for name in os.listdir(folder) if name.endswith(".sock"))
    return found[:MAX_CONTEXTS]


def _folder() -> str:
    """Ours alone, or nothing goes on."""
    path = f"/tmp/.agentd-python-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise KernelFailed("kernel_failed", path + " is not a private directory of ours: remove it")
    return path


def main() -> "NoReturn":
    asked = json.load(sys.stdin.buffer)
    operations = {"run": run, "interrupt": interrupt, "reset": reset, "list": list_all}
    answer: dict[str, Any]
    try:
        context = Context(asked["context"], time.monotonic() + asked["timeout"])
        answer = {"value": operations[asked["op"]](asked, context)}
    except KernelFailed as error:
        answer = {"error": {"code": error.code, "message": str(error)}}
    except OSError as error:
        answer = {"error": {"code": "kernel_failed", "message": str(error)}}
    print(json.dumps(answer), flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
