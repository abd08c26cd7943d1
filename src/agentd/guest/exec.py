"""The operations ``exec``, ``signal`` and ``list``."""

import contextlib
import errno
import json
import os

from agentd.guest import wire
from agentd.guest.history import DetachedCommand, History, beginning, is_named
from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, get_bool, get_int
from agentd.guest.output import STDERR, STDOUT
from agentd.guest.process import ExitInfo, GuestProcess
from agentd.guest.processes import Processes
from agentd.guest.spawn_request import STDIN_NONE, STDIN_STREAM, SpawnError, SpawnRequest
from agentd.guest.system import signal_namespace

FRAME_OF = {STDOUT: wire.STDOUT, STDERR: wire.STDERR}
FD_NAMES = ("stdin", "stdout", "stderr")
LIMIT_NAMES = (
    "wall_ms",
    "cpu_s",
    "output",
    "open_files",
    "processes",
    "file_size",
    "address_space",
)
MAX_NUMBER = (1 << 63) - 1
MAX_ID = (1 << 32) - 2
MAX_WINDOW_SIDE = (1 << 16) - 1
MAX_TAG = 256
# JSON bytes of all arguments together that ``list`` tells: with the rest less than a frame.
MAX_LISTED = wire.MAX_PAYLOAD // 2
_AROUND_LIST = 64


class CommandOperations:
    """The starters, bound to an agent's processes. ``whole_sandbox``: the agent is its PID 1."""

    def __init__(self, processes: Processes, history: History, *, whole_sandbox: bool) -> None:
        self._processes = processes
        self.history = history
        self._whole_sandbox = whole_sandbox

    def exec(
        self, channel: Channel, request: dict[str, object], fds: list[int]
    ) -> ChannelOperation | None:
        try:
            detach, spawn = self._parse(request, fds)
            if detach:
                self.history.admit(spawn.tag)
        except (RequestError, SpawnError) as error:
            for fd in fds:
                os.close(fd)
            _failed(channel, SpawnError("request", error.errno, str(error)))
            return None
        try:
            if detach:
                return self._start_detached(channel, spawn, held=get_bool(request, "hold"))
            return Exec(self, channel, self._processes, spawn)
        except SpawnError as error:
            _failed(channel, error)
            return None

    def signal(self, channel: Channel, request: dict[str, object], fds: list[int]) -> None:
        process = None
        if request.get("target", "group") == "group":
            process = self.find(request)
        self.send_signal(process, request)
        channel.finish("result")

    def list_all(self, channel: Channel, request: dict[str, object], fds: list[int]) -> None:
        detached = self.history.all()
        known = {record.process.pid for record in detached if record.info is None}
        attached = [p for p in self._processes if p.pid not in known]
        entries = [describe(p, None) for p in attached]
        entries += [describe(record.process, record.info) for record in detached]
        most = MAX_LISTED // max(1, len(entries))
        for entry in entries:
            entry["argv"] = beginning(_strings(entry["argv"], "argv"), most)
        if len(json.dumps(entries)) > wire.MAX_PAYLOAD - _AROUND_LIST:
            raise RequestError("the tags of the commands take over 1 MiB", errno.EFBIG)
        channel.finish("result", processes=entries)

    def find(self, request: dict[str, object]) -> GuestProcess:
        """Returns the command that ``pid`` or ``tag`` names. Raises RequestError."""
        record = self.history.find(request.get("pid"), request.get("tag"))
        if record is not None and record.info is None:
            return record.process
        for process in self._processes:
            if is_named(process, request.get("pid"), request.get("tag")):
                return process
        raise RequestError("no such command: give the pid or the tag of one", errno.ESRCH)

    def send_signal(self, process: GuestProcess | None, request: dict[str, object]) -> None:
        """Carry out ``signal``. Raises RequestError or OSError."""
        number = get_int(request, "signal", 0, 1, 64)
        target = request.get("target", "group")
        if target == "group" and process is not None:
            process.signal(number)
        elif target == "sandbox":
            self.signal_all(number)
        else:
            raise RequestError("'target' must be 'group' or 'sandbox'", errno.EINVAL)

    def signal_all(self, number: int) -> None:
        """Signals all in the sandbox but the agent: all that is ours where that is no PID 1."""
        if self._whole_sandbox:
            signal_namespace(number)
            return
        for process in self._processes:
            process.signal(number)

    def _start_detached(
        self, channel: Channel, spawn: SpawnRequest, *, held: bool
    ) -> ChannelOperation | None:
        record = DetachedCommand(held=held)
        record.process = self._processes.start(
            spawn, on_output=record.on_output, on_exit=record.on_exit, window=record.window
        )
        self.history.add(record)
        starting = Starting(channel, self.history, record)
        record.process.after_start(starting.on_started)
        return None if starting.known else starting

    def _parse(self, request: dict[str, object], fds: list[int]) -> tuple[bool, SpawnRequest]:
        passed = _passed(request.get("fds"), fds)
        detach = get_bool(request, "detach")
        stdin = passed.get("stdin")
        if stdin is None:
            stdin = _stdin(request.get("stdin", "none"))
        elif request.get("stdin", "none") != "none":
            raise RequestError("'stdin' is passed as a descriptor and asked for as well")
        mode = request.get("env_mode", "merge")
        if mode not in {"merge", "replace"}:
            raise RequestError("'env_mode' must be 'merge' or 'replace'")
        user = request.get("user")
        spawn = SpawnRequest(
            _strings(request.get("argv"), "argv"),
            cwd=_optional_str(request, "cwd"),
            env=_env(request.get("env")),
            replace_env=mode == "replace",
            user=None if user is None else get_int(request, "user", 0, 0, MAX_ID),
            stdin=stdin,
            stdout=passed.get("stdout"),
            stderr=passed.get("stderr"),
            pty=_pty(request.get("pty")),
            limits=_limits(request.get("limits")),
            tag=_tag(request),
        )
        if spawn.pty is not None and passed:
            raise RequestError("a pty and passed descriptors exclude each other")
        return detach, spawn


class Starting(Quiet):
    """A detached command of which it is not known yet whether it has begun."""

    def __init__(self, channel: Channel, history: History, record: DetachedCommand) -> None:
        self.known = False
        self._channel: Channel | None = channel
        self._history = history
        self._record = record

    def on_started(self, error: SpawnError | None) -> None:
        self.known = True
        if error is not None:
            self._history.drop(self._record)
        channel, self._channel = self._channel, None
        if channel is None:
            return  # whoever asked is gone; it goes on
        if error is not None:
            _failed(channel, error)
        else:
            channel.finish("started", pid=self._record.process.pid)

    def close(self) -> None:
        self._channel = None


class CommandControls:
    """A channel of one command: what the host sends on it feeds, signals, resizes or ends that."""

    _process: GuestProcess

    def __init__(self, commands: CommandOperations, channel: Channel) -> None:
        self._commands = commands
        self._channel = channel

    def on_data(self, kind: int, data: bytes) -> None:
        if kind != wire.STDIN:
            raise RequestError("a command takes STDIN, not DATA")
        self._process.feed(data, self._channel.grant)

    def on_eof(self, kind: int) -> None:
        self._process.feed_eof()

    def on_control(self, request: dict[str, object]) -> None:
        """Carries out a CONTROL frame. One that cannot be done is ignored: an answer would be the
        channel's last, and with that would end what it is about."""
        name = request.get("op")
        with contextlib.suppress(RequestError, OSError):
            if name == "signal":
                self._commands.send_signal(self._process, request)
            elif name == "resize":
                self._process.resize(*_window(request))

    def cancel(self) -> None:
        self._process.kill("cancelled")


class Exec(CommandControls):
    """An attached command: it lives as long as its channel."""

    def __init__(
        self,
        commands: CommandOperations,
        channel: Channel,
        processes: Processes,
        spawn: SpawnRequest,
    ) -> None:
        super().__init__(commands, channel)
        self._process = processes.start(
            spawn, on_output=self._on_output, on_exit=self._on_exit, window=channel.credit
        )
        self._process.after_start(self._on_started)

    def _on_started(self, error: SpawnError | None) -> None:
        if error is not None:
            _failed(self._channel, error)
        else:
            self._channel.event_lazily("started", pid=self._process.pid)

    def on_credit(self) -> None:
        self._process.resume_output()

    def close(self) -> None:
        self._process.abandon()

    def _on_output(self, stream: int, data: bytes) -> None:
        self._channel.send(FRAME_OF[stream], data)

    def _on_exit(self, info: ExitInfo) -> None:
        self._channel.finish("exited", **info.fields())


def _failed(channel: Channel, error: SpawnError) -> None:
    code = error.errno or errno.EINVAL
    more = {"detail": error.detail} if error.detail else {}
    channel.finish("failed", errno=code, stage=error.stage, message=str(error), **more)


def describe(process: GuestProcess, info: ExitInfo | None) -> dict[str, object]:
    totals = {number: pump.total for number, pump in process.pumps.items()}
    return {
        "pid": process.pid,
        "tag": process.tag,
        "argv": process.argv,
        "state": "running" if info is None else "exited",
        "code": None if info is None else info.code,
        "signal": None if info is None else info.signal,
        "cause": None if info is None else info.cause,
        "stdout_bytes": totals.get(STDOUT, 0),
        "stderr_bytes": totals.get(STDERR, 0),
    }


def _passed(names: object, fds: list[int]) -> dict[str, int]:
    if names is None:
        return {}
    if not isinstance(names, list) or not all(map(FD_NAMES.__contains__, names)):
        raise RequestError("'fds' must be a list of 'stdin', 'stdout', 'stderr'")
    if len(set(names)) != len(names) or len(names) != len(fds):
        raise RequestError(f"'fds' names {len(names)} descriptors and {len(fds)} were passed")
    return dict(zip(names, fds, strict=True))


def _stdin(value: object) -> int:
    if value == "none":
        return STDIN_NONE
    if value == "stream":
        return STDIN_STREAM
    raise RequestError("'stdin' must be 'none' or 'stream'")


def _strings(value: object, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RequestError(f"{key!r} must be a list of strings")
    return value


def _optional_str(request: dict[str, object], key: str) -> str | None:
    value = request.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{key!r} must be a string")
    return value


def _env(value: object) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise RequestError("'env' must be an object of strings")
    return value


def _tag(request: dict[str, object]) -> str | None:
    tag = _optional_str(request, "tag")
    if tag is not None and len(tag) > MAX_TAG:
        raise RequestError(f"'tag' is over {MAX_TAG} characters")
    return tag


def _pty(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise RequestError("'pty' must be an object of 'rows' and 'cols'")
    return _window(value)


def _window(value: dict[str, object]) -> tuple[int, int]:
    rows = get_int(value, "rows", 24, 1, MAX_WINDOW_SIDE)
    return rows, get_int(value, "cols", 80, 1, MAX_WINDOW_SIDE)


def _limits(value: object) -> dict[str, int]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RequestError("'limits' must be an object")
    unknown = sorted(set(value) - set(LIMIT_NAMES))
    if unknown:
        raise RequestError(f"unknown limit {unknown[0][:64]!r}")
    return {
        name: get_int(value, name, 0, 0 if name == "output" else 1, MAX_NUMBER)
        for name in value
        if value[name] is not None
    }
