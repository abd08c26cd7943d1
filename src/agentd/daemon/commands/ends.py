"""What completes a command's request, and how it ends: its cause, its status, its digests; and
which commands end with their daemon."""

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import msgspec

from agentd.model.api import ResultView
from agentd.model.egress import RESTRICTED, cassette
from agentd.model.errors import AgentdError, BackendLost, GuestError, SandboxEnded, SandboxError
from agentd.model.packages import with_packages
from agentd.model.result import (
    Cause,
    CauseCode,
    Exit,
    NetworkUsage,
    Result,
    Timing,
    Usage,
    as_texts,
)
from agentd.model.secret import check_variables
from agentd.model.spec import ExecRequest
from agentd.model.typed import like
from agentd.sandbox import ending
from agentd.sandbox.abilities import NETWORK
from agentd.sandbox.ending import grown
from agentd.sandbox.ports import Wall
from agentd.transport.events import Chunk

if TYPE_CHECKING:
    from agentd.daemon.commands.command import Command
    from agentd.model.running import Running
    from agentd.sandbox.manager import SandboxHandle

_COUNTED = ("allowed", "denied", "asked", "sent", "received")
_NO_ROWS = 1 << 62  # a cursor that no connection comes after

INTERRUPTED = Cause.of(CauseCode.INTERRUPTED, "its daemon ended before it was seen to end")
SHUT_DOWN = Cause.of(CauseCode.INTERRUPTED, "its daemon shut down while it ran")
DESTROYED = Cause.of(CauseCode.CANCELLED, "its sandbox was ended while it ran")
LEASE_OVER = Cause.of(CauseCode.LEASE_EXPIRED, "the lease of its sandbox ended while it ran")
IDLE_OVER = Cause.of(CauseCode.CANCELLED, "its sandbox was ended for being idle")


# No agent starts a process faster: an exec alone takes longer.
_START_SECONDS = 0.0003


class CommandLost(AgentdError):
    """A command of the daemon before is not there any more."""

    code = "interrupted"


class CommandEnding:
    """Tells how a command ends; made right before it begins. ``why``: who kills it says so, before
    it does; ``lost``: how one ended that was lost with its wall or its agent."""

    def __init__(self, handle: "SandboxHandle") -> None:
        self.why: Cause | None = None
        self.lost: Exit | None = None
        self._handle = handle
        self._began = time.monotonic()
        # The first command waited for the sandbox; those after it found it ready.
        self._setup_ms, handle.unreported_ms = handle.unreported_ms, 0.0
        self._before: Mapping[str, int] = {}

    def look(self) -> None:
        """Note which limits the sandbox has met before, right after the command began."""
        # One that has run nothing has met none. Otherwise they are read while the agent is busy
        # starting the command, unless we were held up and it may have met one already.
        sent = time.monotonic()
        counters = {} if self._setup_ms else dict(self._handle.wall.counters())
        if time.monotonic() - sent < _START_SECONDS:
            self._handle.counters = counters
        self._before = self._handle.counters

    @property
    def reason(self) -> Cause | None:
        """Why somebody ends it, or its sandbox; None where it ends by itself."""
        return self.why or getattr(self._handle, "why", None)

    def lose(self, error: BackendLost | GuestError) -> None:
        """Note what a broken stream means. Raises GuestError where the wall lives, for a liar."""
        why, spent = self.reason, self._spent()
        if why is None:
            self.lost = of_wall(self._handle.wall, error, self._before, spent.wall_ms)
        else:
            self.lost = Exit(None, None, why, spent)

    def result(
        self, end: Exit, running: "Running", request_id: str
    ) -> tuple[Result, list[tuple[str, bool]]]:
        """Return it with what was captured of its output; and what its sandbox was refused since it
        was last looked at, as ``ends.used`` does."""
        spent = self._spent().wall_ms
        refined = end
        if not end.ok and not self.lost:
            self._handle.counters = dict(self._handle.wall.counters())
            refined = refine(end, self._before, self._handle.counters)
        if end.signal is not None and (why := self.reason) is not None:
            refined = msgspec.structs.replace(end, cause=why)
        network, refused = (msgspec.UNSET, []) if self.lost else used(self._handle)
        result = Result(
            request_id=request_id,
            status=status(refined),
            exit_code=refined.exit_code,
            signal=refined.signal,
            cause=refined.cause,
            stdout=bytes(getattr(running, "stdout", b"")),
            stderr=bytes(getattr(running, "stderr", b"")),
            truncated=running.truncated,
            usage=msgspec.structs.replace(refined.usage, network=network),
            timing=Timing(self._setup_ms, spent, self._setup_ms + spent),
            sandbox=self._handle.info,
            enforcement=dict(self._handle.enforcement),
        )
        return result, refused

    def _spent(self) -> Usage:
        return Usage(wall_ms=(time.monotonic() - self._began) * 1000)


class Digests:
    """Computes each stream's digest as it goes by. What was lost on the way is not in it."""

    def __init__(self) -> None:
        self._of: dict[str, Any] = {}

    def take(self, pieces: Iterable[Chunk]) -> None:
        for name, data in pieces:
            if data:
                if name not in self._of:
                    self._of[name] = sha256()
                self._of[name].update(data)

    def found(self) -> dict[str, str]:
        return {name: f"sha256:{digest.hexdigest()}" for name, digest in self._of.items()}


class AwaitedCommands:
    """Knows the commands whose callers wait for their ends: a daemon that shuts down ends these,
    and no other. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._going: dict[str, Command] = {}
        self._ending = False

    @contextlib.contextmanager
    def one(self, command: "Command") -> Iterator[None]:
        """Count it among them within the block."""
        with self._lock:
            self._going[command.id] = command
            late = self._ending
        try:
            if late:
                command.cancel(SHUT_DOWN)
            yield
        finally:
            with self._lock:
                del self._going[command.id]

    def end(self) -> None:
        """End them, and each that a call begins after it: whoever waits is told so."""
        with self._lock:
            self._ending, going = True, list(self._going.values())
        for command in going:
            command.cancel(SHUT_DOWN)

    def wait_idle(self, seconds: float) -> bool:
        """Wait until there is none; False when there is still one.

        What was started without waiting goes on in its sandbox when we end.
        """
        deadline = time.monotonic() + seconds
        while self._going and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self._going


def completed(request: ExecRequest, handle: "SandboxHandle") -> ExecRequest:
    """Return what the sandbox says where the request says nothing; idempotent. Raises InvalidInput
    for a variable that has the name of a secret, and BackendLost."""
    spec, wall = handle.spec, handle.wall
    if spec.secrets:
        check_variables(spec.secrets, request.env)
    env = {**spec.env, **request.env}
    places = [mount.target for mount in spec.mounts if mount.packages]
    if places:  # they come first in a command's own paths, too
        env = with_packages(env, {}, places[0])
    # Where an image says, which not every wall has.
    begin = getattr(wall, "workdir", None) or wall.workspace
    return msgspec.structs.replace(
        request,
        # The root of a foreign guest is its workspace; an empty path would be none.
        cwd=os.path.join(begin, request.cwd or ".").removesuffix("/.") or "/",
        env=env,
        timeout=request.timeout or spec.limits.timeout,
        output_limit=request.output_limit or spec.limits.output,
    )


def of_wall(
    wall: Wall, error: BackendLost | GuestError, before: Mapping[str, int], ms: float
) -> Exit:
    """Return what a broken stream means; a living wall with a lying agent stays an error."""
    gone = wall.wait(ending.DEATH_SECONDS)
    if isinstance(error, GuestError) and not gone:
        raise error
    cause = ending.of_wall(wall, before, gone=gone)
    if cause is None:
        cause = Cause.of(CauseCode.BACKEND_LOST, f"the sandbox ended under its work: {error}")
    return Exit(None, None, cause, Usage(wall_ms=ms))


def used(
    handle: "SandboxHandle",
) -> tuple[NetworkUsage | msgspec.UnsetType, list[tuple[str, bool]]]:
    """Return what a sandbox has done of its network, where rules restrict that; and what it was
    refused since it was last looked at, with the reason, and whether that is an alarm."""
    if handle.spec.net != RESTRICTED:
        return msgspec.UNSET, []
    try:
        wall = handle.able(NETWORK, "tell the connections of")
        seen = handle.network_seen
        found = wall.connections(_NO_ROWS if seen is None else seen)
    except AgentdError:  # it may have ended
        return msgspec.UNSET, []
    handle.network_seen = found.cursor
    refused = [
        (f"{_target(row)}: {row['reason']}", bool(row.get("alarm")))
        for row in found.rows
        if not row["allowed"] and row["ended"]
    ]
    counted = {name: found.totals.get(name, 0) for name in _COUNTED}
    word = cassette(handle.spec.egress)
    return NetworkUsage(**counted, hosts=found.hosts, cassette=word), refused


def _target(row: Mapping[str, Any]) -> str:
    host = row["name"] or row["address"]
    if row["port"] is None:
        return str(host)
    return f"[{host}]:{row['port']}" if ":" in host else f"{host}:{row['port']}"


def refine(end: Exit, before: Mapping[str, int], after: Mapping[str, int]) -> Exit:
    """Return the end with the limit that the wall's counters say it ran into."""
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


def status(end: Exit) -> str:
    if end.ok:
        return "ok"
    never = (CauseCode.SPAWN_FAILED, CauseCode.BACKEND_LOST, CauseCode.INTERRUPTED)
    return "error" if end.cause.code in never else "failed"


def cause_of(error: AgentdError) -> Cause:
    """Return the cause of a command whose end nobody will see."""
    # A capability's own code, which a program may choose, is none of ours.
    if error.code == CauseCode.INTERRUPTED and error.infrastructure:
        return Cause.of(CauseCode.INTERRUPTED, error.message)
    if isinstance(error, SandboxEnded) or error.code == CauseCode.CANCELLED:
        return Cause(CauseCode(error.code), error.message, error.remediation)
    if isinstance(error, BackendLost | GuestError):
        return Cause.of(CauseCode.BACKEND_LOST, str(error))
    text = f"{error.code}: {error}"
    return Cause(CauseCode.FAILED, text, infrastructure=error.infrastructure)


def lost(request_id: str, handle: "SandboxHandle", error: AgentdError) -> Result:
    """Return the result of a command whose end nobody will see."""
    return Result(
        request_id=request_id,
        status="error",
        exit_code=None,
        signal=None,
        cause=cause_of(error),
        stdout=b"",
        stderr=b"",
        truncated=True,
        usage=Usage(),
        timing=Timing(),
        sandbox=handle.info,
        enforcement=dict(handle.enforcement),
    )


def of_result(result: Result, process: str) -> ResultView:
    """Return it in the words of the ways in, bare: without output."""
    return like(ResultView, result, stdout="", stderr="", encoding="utf-8", process=process)


def with_output(view: ResultView, stdout: bytes, stderr: bytes, whole: bool = True) -> ResultView:
    """Return one that is bare with what was written, or the begin of it."""
    out, err, encoding = as_texts(stdout, stderr)
    cut = view.truncated or not whole
    return msgspec.structs.replace(view, stdout=out, stderr=err, encoding=encoding, truncated=cut)


def ours(error: BaseException) -> AgentdError:
    """Return ``error``, as one of ours."""
    if isinstance(error, AgentdError):
        return error
    return SandboxError(f"agentd failed at it: {type(error).__name__}: {error}")
