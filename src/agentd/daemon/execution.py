"""One command from its start to its Result; the one place where a cause is refined."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.model import context
from agentd.model.cause import Cause, CauseCode
from agentd.model.errors import AgentdError, BackendLost, GuestError
from agentd.model.result import Exit, Result, Timing, Usage
from agentd.model.spec import ExecRequest
from agentd.sandbox.abilities import TELLS_END
from agentd.sandbox.manager import SandboxHandle
from agentd.transport.core import Chunk, Missing
from agentd.transport.running import NeverRan, SpawnFailed, StdinNotStreamed

if TYPE_CHECKING:
    from agentd.daemon.admission.admission import Admission
    from agentd.transport.guest import Guest
    from agentd.transport.running import Running

# A wall that dies takes its agent's stream along first; the process itself follows.
_DEATH_SECONDS = 1.0
# No agent starts a process faster: an exec alone takes longer.
_START_SECONDS = 0.0003


INTERRUPTED = Cause.of(CauseCode.INTERRUPTED, "its daemon ended before it was seen to end")


class Interrupted(AgentdError):
    """A command of the daemon before is not there any more."""

    code = "interrupted"


class Digests:
    """Of each stream, as it goes by. What was lost on the way is not in it."""

    def __init__(self) -> None:
        self._of: dict[str, Any] = {}

    def take(self, chunks: Iterable[Chunk]) -> None:
        for name, data in chunks:
            if data:
                if name not in self._of:
                    self._of[name] = sha256()
                self._of[name].update(data)

    def found(self) -> dict[str, str]:
        return {name: f"sha256:{digest.hexdigest()}" for name, digest in self._of.items()}


class Execution:
    """A running command. One thread drives it; ``close`` kills what has not ended."""

    def __init__(
        self,
        handle: SandboxHandle,
        begin: "Callable[[Guest], Running]",
        admission: "Admission | None" = None,
    ) -> None:
        named = admission.request_id if admission is not None else context.current()
        self.request_id = named or context.new_id()
        self._digests = Digests() if admission is not None else None
        self._handle = handle
        fresh = bool(handle.unreported_ms)
        self._started = time.monotonic()
        self._lost: Exit | None = None
        self.result: Result | None = None  # once it has ended, though that is not written down
        self._pid: int | None = None
        # Where an attached one was asked for from, until it is known where it really begins.
        self._place: tuple[int, int] | None = None
        # The first command waited for the sandbox; those after it found it ready.
        self._setup_ms, handle.unreported_ms = handle.unreported_ms, 0.0
        self._admission = admission
        self._open = False
        self._cancelled = False
        try:
            guest = handle.begin_command()
            self._open = True
            self.running = begin(guest)
        except BaseException as error:
            self._end(error)
            raise
        # A sandbox that has run nothing has met no limit. Otherwise they are read while the agent
        # is busy starting the command, unless we were held up and it may have met one already.
        sent = time.monotonic()
        counters = {} if fresh else dict(handle.wall.counters())
        if time.monotonic() - sent < _START_SECONDS:
            handle.counters = counters
        self._before = handle.counters

    @classmethod
    def of(
        cls,
        handle: SandboxHandle,
        request: ExecRequest,
        admission: "Admission | None" = None,
        *,
        capture: bool,
    ) -> "Execution":
        """One whose output and end come by a stream of ours: it ends with that."""

        def begin(guest: "Guest") -> "Running":
            try:
                return guest.start(request, capture=capture)
            except StdinNotStreamed:
                return guest.start_with_whole_stdin(request)

        return cls(handle, begin, admission)

    @classmethod
    def detached(
        cls, handle: SandboxHandle, request: ExecRequest, admission: "Admission | None" = None
    ) -> "Execution":
        """One that goes on without us; ``request.tag`` finds it again."""

        pids: list[int] = []

        def begin(guest: "Guest") -> "Running":
            try:
                pids.append(guest.start_detached(request, hold=True))
            except SpawnFailed as failure:
                return NeverRan(failure.exit)
            try:
                return guest.attach(pids[0], hold=True)
            except BaseException:  # it is refused, and does not go on all the same
                with contextlib.suppress(AgentdError):
                    guest.signal(pids[0], signal.SIGKILL)
                raise

        execution = cls(handle, begin, admission)
        # It has started, though the answer to the attach may still be on its way.
        execution._pid = pids[0] if pids else None
        return execution

    @classmethod
    def attached(
        cls,
        handle: SandboxHandle,
        tag: str,
        place: tuple[int, int],
        admission: "Admission | None" = None,
    ) -> "Execution":
        """A detached one of before, from those bytes of stdout and stderr on.

        Where it is not found any more, ``admission`` is not ended: its END is written with those
        of all that were interrupted.
        """
        execution = cls(handle, lambda guest: guest.attach(tag, place, hold=True))
        if admission is not None:
            execution._admission, execution._digests = admission, Digests()
            execution.request_id = admission.request_id
        execution._place = place
        return execution

    @property
    def pid(self) -> int | None:
        """In the sandbox; None before it has started."""
        return self.running.pid or self._pid

    @property
    def exit(self) -> Exit | None:
        return self._lost or self.running.exit

    def step(
        self, timeout: float | None = None, extra_fds: Sequence[int] = ()
    ) -> tuple[list[Chunk], list[int]]:
        """One round: chunks of output, and which of ``extra_fds`` are readable."""
        if self._lost is not None:
            return [], []
        try:
            # After the end nothing wakes a poll of ``extra_fds`` alone: take what is left.
            found = self.running.step(timeout, extra_fds if self.exit is None else ())
            if self._place is not None:
                found = [*self._missed(self._place), *found[0]], found[1]
            if self._digests is not None:
                self._digests.take(found[0])
            return found
        except (BackendLost, GuestError) as error:
            self._lost = self._end_of_wall(error)
            return [], []

    def _missed(self, asked: tuple[int, int]) -> list[Chunk]:
        """What the agent had dropped while nobody followed, once it has told."""
        begun: tuple[int, int] | None = getattr(self.running, "cursor", None)
        if begun is None:
            return []
        self._place = None
        places = zip(("stdout", "stderr"), asked, begun, strict=True)
        return [(name, Missing.of(at - wanted)) for name, wanted, at in places if at > wanted]

    def chunks(self) -> Iterator[Chunk]:
        while True:
            found, _ = self.step()
            yield from found
            if self.exit is not None and not found:
                return

    def write(self, data: bytes) -> None:
        try:
            self.running.write(data)
        except BackendLost as error:
            self._lost = self._end_of_wall(error)

    def close_stdin(self) -> None:
        self.running.close_stdin()

    def kill(self) -> None:
        self.running.kill()

    def cancel(self) -> None:
        """``kill``, for nobody waits for it any more."""
        self._cancelled = True
        self.kill()

    def finish(self) -> Result:
        """Wait for the end; output that nobody took is dropped, unless it is captured."""
        while self.exit is None:
            self.step()
        end = self.exit
        exec_ms = (time.monotonic() - self._started) * 1000
        refined = end
        if not end.ok and not self._lost:
            self._handle.counters = dict(self._handle.wall.counters())
            refined = refine(end, self._before, self._handle.counters)
        if self._cancelled and end.signal is not None:
            gone = Cause.of(CauseCode.CANCELLED, "whoever waited for it has gone")
            refined = msgspec.structs.replace(end, cause=gone)
        result = Result(
            request_id=self.request_id,
            status=status(refined),
            exit_code=refined.exit_code,
            signal=refined.signal,
            cause=refined.cause,
            stdout=bytes(getattr(self.running, "stdout", b"")),
            stderr=bytes(getattr(self.running, "stderr", b"")),
            truncated=self.running.truncated,
            usage=refined.usage,
            timing=Timing(self._setup_ms, exec_ms, self._setup_ms + exec_ms),
            sandbox=self._handle.info,
            enforcement=dict(self._handle.enforcement),
        )
        self.result = result
        admission, self._admission = self._admission, None
        if admission is None or self._digests is None:
            return result
        self._digests.take((("stdout", result.stdout), ("stderr", result.stderr)))
        return msgspec.structs.replace(result, receipt=admission.end(result, self._digests.found()))

    def close(self) -> None:
        self.running.close()
        self._end(None)

    def abort(self, error: AgentdError) -> None:
        """As ``close``; the record of its end tells of ``error``."""
        self.running.close()
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        admission, self._admission = self._admission, None
        try:
            if admission is not None:
                admission.fail(error)
        finally:
            if self._open:
                self._open = False
                self._handle.end_command()

    def __enter__(self) -> "Execution":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _end_of_wall(self, error: BackendLost | GuestError) -> Exit:
        """What a broken stream means; a living wall with a lying agent stays an error."""
        wall = self._handle.wall
        gone = wall.wait(_DEATH_SECONDS)
        if isinstance(error, GuestError) and not gone:
            raise error
        teller = TELLS_END.of(wall) if gone else None
        told = None if teller is None else teller.ending()
        if told is not None:
            cause = told
        elif grown(self._before, wall.counters(), "oom"):
            cause = Cause.of(CauseCode.OOM, "the sandbox ran out of memory and ended")
        else:
            cause = Cause.of(CauseCode.BACKEND_LOST, f"the sandbox ended under its work: {error}")
        return Exit(None, None, cause, Usage(wall_ms=(time.monotonic() - self._started) * 1000))


def cause_of(error: AgentdError) -> Cause:
    """Of a command whose end nobody will see."""
    if isinstance(error, Interrupted):
        return INTERRUPTED
    if isinstance(error, BackendLost | GuestError):
        return Cause.of(CauseCode.BACKEND_LOST, str(error))
    return Cause(CauseCode.FAILED, f"{error.code}: {error}")


def completed(request: ExecRequest, handle: SandboxHandle) -> ExecRequest:
    """What the sandbox says where the request says nothing; idempotent."""
    spec = handle.spec
    return msgspec.structs.replace(
        request,
        # The root of a foreign guest is its workspace; an empty path would be none.
        cwd=os.path.join(handle.wall.workspace, request.cwd or ".").removesuffix("/.") or "/",
        env={**spec.env, **request.env},
        timeout=request.timeout or spec.limits.timeout,
        output_limit=request.output_limit or spec.limits.output,
    )


def refine(end: Exit, before: Mapping[str, int], after: Mapping[str, int]) -> Exit:
    """The agent sees an exit; the wall's counters tell which limit it ran into."""
    failed = end.signal is not None or end.exit_code != 0
    if end.cause.code not in (CauseCode.EXITED, CauseCode.SIGNALLED) or not failed:
        return end
    if grown(before, after, "oom"):
        cause = Cause.of(CauseCode.OOM, f"ran out of memory ({end.cause.message})")
    elif grown(before, after, "pids"):
        cause = Cause.of(
            CauseCode.PIDS_LIMIT, f"ran into the limit of processes ({end.cause.message})"
        )
    else:
        return end
    return Exit(end.exit_code, end.signal, cause, end.usage)


def grown(before: Mapping[str, int], after: Mapping[str, int], name: str) -> bool:
    return after.get(name, 0) > before.get(name, 0)


def status(end: Exit) -> str:
    if end.ok:
        return "ok"
    never = (CauseCode.SPAWN_FAILED, CauseCode.BACKEND_LOST, CauseCode.INTERRUPTED)
    return "error" if end.cause.code in never else "failed"
