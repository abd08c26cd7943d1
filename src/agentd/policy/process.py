"""Worker processes as their owner has them: started, asked, replaced, ended."""

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator

from agentd.model import typed
from agentd.model.errors import AgentdError, Full, Refused, Unavailable
from agentd.policy import patience, start
from agentd.policy.frames import EngineInfo, EngineMissing, packed, receive, send
from agentd.policy.patience import Patience

# msgspec looks for typing_extensions, a sixth of a start with it, and does without:
# None is "cannot be had" (PEP 328).
_CODE = (
    "import sys; sys.path[:] = {path!r}; sys.modules['typing_extensions'] = None; "
    "from agentd.policy.start import main; main()"
)
_MAX_WORDS = 64 << 10  # bytes of what it said on standard error: what a pipe holds
_GRACE = 2.0  # seconds, to end
_WAIT_SECONDS = 10.0  # for a decision, beyond what it may compute: the machine may be busy


class WorkerLost(AgentdError):
    """The worker ended before it answered: it took too long, ran out of memory, or crashed."""

    code = "policy_worker_lost"


class WorkerSlow(WorkerLost):
    """The worker was given up through no fault of the question: it hung, or had no processor."""

    code = "policy_worker_slow"


class NoEngine(Unavailable):
    """Its library cannot be loaded here; it says what is missing, and what to install."""

    code = "policy_no_engine"


class NoAnswer(Refused):
    """The engine says why it has none."""

    code = "policy_no_answer"


class WorkerProcess:
    """A worker process. For one thread at a time. Raises AgentdError where it cannot be started."""

    def __init__(self) -> None:
        self.loaded = ""  # the path of what it has loaded, for its pool
        self._seconds = 0.0
        self._stream, theirs = socket.socketpair()
        # What it says before it ends is the only word of a crash. It waits for no reader.
        self._words, words = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        code = _CODE.format(path=[os.path.abspath(p) for p in sys.path])
        try:
            with theirs, open(words, "wb", buffering=0):
                self._child = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", code],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=words,
                    env=_environment(),
                    process_group=0,  # Ctrl-C is for its owner, which still wants decisions
                )
        except OSError as error:
            self._stream.close()
            os.close(self._words)
            raise AgentdError("cannot start a policy worker", cause=str(error)) from error

    def ask(self, operation: bytes, body: bytes, seconds: float) -> bytes:
        """Ask for a decision that may compute for so long.

        Raises NoAnswer; WorkerLost and NoEngine, after which it is closed.
        """
        self._limit(seconds + _WAIT_SECONDS)
        try:
            send(self._stream, operation + body)
            frame = receive(self._stream)
        except (BrokenPipeError, ConnectionResetError):
            frame = None
        except BlockingIOError as error:
            self.close()
            raise WorkerSlow(
                "the policy worker was given up",
                cause=f"it did not decide within {seconds + _WAIT_SECONDS:g} s, nor end",
            ) from error
        except (OSError, ValueError) as error:
            self.close()
            raise WorkerLost("the policy worker broke off", cause=str(error)) from error
        return self._answer(frame, f"it took more than {seconds:g} s")

    def work(self, operation: bytes, body: bytes, what: str) -> bytes:
        """Have it compile or load (``what`` says what), for as long as it works.

        Raises what ``ask`` does.
        """
        self._limit(patience.IDLE_SECONDS)  # of a frame that has begun to come
        hope = Patience(self._child.pid)
        try:
            self._send(packed(operation + body), hope, what)
            self._wait(select.POLLIN, hope, what)
            frame = receive(self._stream)
        except (BrokenPipeError, ConnectionResetError):
            frame = None
        except (OSError, ValueError) as error:
            self.close()
            raise WorkerLost("the policy worker broke off", cause=str(error)) from error
        return self._answer(frame, f"it computed for more than {patience.CPU_SECONDS:g} s")

    def engine(self) -> EngineInfo:
        """Return what it decides with. Raises WorkerLost, NoEngine."""
        return typed.decoder(EngineInfo).decode(
            self.work(b"v", b"", "the start of the policy engine")
        )

    def _send(self, frame: bytes, hope: Patience, what: str) -> None:
        view = memoryview(frame)
        while view:
            self._wait(select.POLLOUT, hope, what)
            view = view[self._stream.send(view, socket.MSG_DONTWAIT) :]

    def _wait(self, event: int, hope: Patience, what: str) -> None:
        """Raises WorkerSlow, after which it is closed."""
        poller = select.poll()
        poller.register(self._stream, event)
        while not poller.poll(hope.slice * 1000):
            cause, fix = hope.over()
            if cause:
                self.close()
                raise WorkerSlow(f"{what} was given up", cause=cause, remediation=fix)

    def _answer(self, frame: bytes | None, alarm: str) -> bytes:
        if frame is None:
            raise WorkerLost("the policy worker ended", cause=self._end(alarm))
        if frame[:1] == b"!":
            self.close()
            missing = typed.decoder(EngineMissing).decode(frame[1:])
            raise NoEngine(
                "the policy engine cannot be loaded", cause=missing.what, remediation=missing.fix
            )
        if frame[:1] != b"+":
            raise NoAnswer(frame[1:].decode(errors="replace"))
        return frame[1:]

    def _limit(self, seconds: float) -> None:
        # The kernel's own: Python's would poll before each call, which is a call more.
        if seconds != self._seconds:
            time = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time)
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, time)
            self._seconds = seconds

    def close(self) -> None:
        """May be called again."""
        self._stream.close()
        self._child.kill()
        self._child.wait()
        start.sweep(self._child.pid)
        if self._words >= 0:
            os.close(self._words)
            self._words = -1

    def _end(self, alarm: str) -> str:
        self._stream.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_GRACE)
        words = self._last_words()
        self.close()
        code = self._child.returncode
        if code == -signal.SIGPROF:
            return alarm
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as the kernel ends who has no memory left (free some, or raise its limit)"
        return f"{how}: {words}" if words else how

    def _last_words(self) -> str:
        """Return the last line of what it said, where it said anything."""
        try:
            said = os.read(self._words, _MAX_WORDS)
        except BlockingIOError:
            return ""
        lines = said.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:500]


def _environment() -> dict[str, str]:
    """What a worker has of its owner's: where a Python of one's own has its libraries, and where
    there is room for files."""
    found = {start.PATH: os.environ.get(start.PATH), start.PLACE: start.place()}
    return {name: value for name, value in found.items() if value is not None}


class WorkerPool:
    """At most ``count`` workers, started when they are needed. Thread-safe."""

    def __init__(self, count: int) -> None:
        # The one used last is taken first: it is the one in the caches, and others may stay unborn.
        self._free: list[WorkerProcess | None] = [None] * count
        self._changed = threading.Condition()
        self._count = count
        self._closed = False

    @contextlib.contextmanager
    def borrow(self, seconds: float) -> Iterator[WorkerProcess]:
        """Waits so long for a free one. One that was left before it had answered is replaced: its
        answer would be taken for that to the next question. Raises Full.
        """
        process = self._take(seconds)
        try:
            if self._closed:
                raise Refused("the policy engine is closed")
            process = process or WorkerProcess()
            yield process
        except NoAnswer:  # that is one
            raise
        except BaseException:  # it ended; or an interrupt, say, came in between
            if process is not None:
                process.close()
                process = None
            raise
        finally:
            self._give(process)

    def close(self) -> None:
        """Waits for what they are doing, which is bounded. Whoever waits for one is refused."""
        self._closed = True
        taken = [self._take(None) for _ in range(self._count)]
        for process in taken:
            if process is not None:
                process.close()
            self._give(None)

    def _take(self, seconds: float | None) -> WorkerProcess | None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._free, seconds):
                raise Full("all policy workers are busy", remediation="send it again in a moment")
            return self._free.pop()

    def _give(self, process: WorkerProcess | None) -> None:
        with self._changed:
            self._free.append(process)
            self._changed.notify()
