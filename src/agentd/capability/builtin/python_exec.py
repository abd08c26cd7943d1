"""``python.exec.v1``: code in an interpreter that keeps its state from call to call.

The state lives in the sandbox, in a process there. Each call runs a short program that finds that
process, or starts it (``inside/python_client.py``): the daemon holds nothing.
"""

import functools
from typing import Annotated, Any, Literal

import msgspec

from agentd.capability import script
from agentd.capability.port import Call, Inside
from agentd.capability.shape import boolean, choice, integer, parameters, string
from agentd.model import typed
from agentd.model.capability import About, Bounds, CallFailed, Example, Needs, Outcome
from agentd.model.characters import whole_characters
from agentd.model.isolation import IsolationLevel

MAX_CODE = 1 << 20
MAX_OUTPUT = 4 << 20  # bytes of each stream
MAX_DISPLAYS = 64
_MAX_DISPLAY_BYTES = 8 << 20
_MAX_LINE = 12 << 20
_MAX_LIVE = 1 << 20  # bytes of a line that is passed on before the end
_MAX_FORMS = 1024  # of a display
_TIMEOUT = 60.0
# For what comes after the code's own time: two interrupts, then the kill.
_GRACE = 8.0
_REMEDIES = {
    "busy": "wait, end the other code with op interrupt or reset, or use another context",
    "too_many_contexts": "end one with op reset",
    "timeout": "raise timeout_ms",
    "kernel_failed": "look at what python3 is in the sandbox, and whether its memory is enough",
}
_SCHEMA = parameters(
    op=choice(
        ["run", "interrupt", "reset", "list"],
        "run",
        "run code, or interrupt what runs, end the context, list the contexts",
    ),
    code=string(maximum=MAX_CODE, default=""),
    context=string(
        default="default",
        description="the interpreter's name: each has a state of its own",
        pattern="^[A-Za-z0-9][A-Za-z0-9_-]{0,47}$",
    ),
    reset=boolean("begin with a new interpreter", default=False),
    timeout_ms=integer(1, 3_600_000, int(_TIMEOUT * 1000), "then the code is interrupted"),
    max_output=integer(
        0, MAX_OUTPUT, 1 << 20, "bytes of stdout and of stderr; what is over them is dropped"
    ),
)

_Bundle = dict[str, str]


class _Error(msgspec.Struct):
    name: str
    value: str
    traceback: str


class _Context(msgspec.Struct):
    context: str
    pid: int
    busy: bool


class _Value(msgspec.Struct):
    status: Literal["ok", "error", "interrupted", "timeout"]
    result: _Bundle | None = None
    error: _Error | None = None
    execution_count: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] | None = None
    kernel: Literal["builtin", "ipykernel"] | None = None
    reset: bool = False
    truncated: bool = False
    interrupted: bool = False
    contexts: list[_Context] = []


class _Answer(msgspec.Struct):
    value: _Value


class _Line(msgspec.Struct):
    kind: Literal["stdout", "stderr", "display"]
    data: bytes


_ANSWER = typed.decoder(_Answer)
_LINE = typed.decoder(_Line)
_DISPLAY = typed.decoder(_Bundle)


class PythonExec:
    about = About(
        name="python.exec.v1",
        summary="run Python in an interpreter that keeps its state",
        schema=_SCHEMA,
        needs=Needs(level=IsolationLevel.NAMESPACE, writes=True),
        bounds=Bounds(timeout=_TIMEOUT, output=80 << 20),
        examples=(
            Example(
                about="the value of the last expression",
                parameters={"code": "x = 6\nx * 7"},
                value={"status": "ok", "result": {"text/plain": "42"}, "stdout": ""},
            ),
            Example(
                about="what is printed, and an await at the top",
                parameters={"code": "import asyncio\nawait asyncio.sleep(0)\nprint('hello')"},
                value={"status": "ok", "result": None, "stdout": "hello\n"},
            ),
            Example(
                about="an exception is an answer, too",
                parameters={"code": "1 / 0", "context": "other"},
                value={"status": "error", "reset": False},
            ),
            Example(
                about="code that takes too long is interrupted, and the state stays",
                parameters={"code": "while True: pass", "timeout_ms": 300},
                value={"status": "timeout", "reset": False},
            ),
        ),
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        op = asked.get("op", "run")
        timeout = min(asked.get("timeout_ms", _TIMEOUT * 1000) / 1000, call.timeout)
        most = asked.get("max_output", 1 << 20)
        heard = _Heard(call, most)
        parameters = {
            "op": op,
            "code": asked.get("code", ""),
            "context": asked.get("context", "default"),
            "reset": asked.get("reset", False),
            "timeout": timeout,
            "max_output": most,
            "sources": _sources(),
            "run_source": script.source("python_run"),
        }
        try:
            value = script.run(
                inside,
                "python_client",
                parameters,
                _ANSWER,
                timeout + _GRACE,
                emit=heard.feed,
                said=heard.keep,
            ).value
        except CallFailed as error:
            remedy = error.remediation or _REMEDIES.get(error.code, "")
            raise CallFailed(
                error.code, error.message, cause=error.cause, remediation=remedy
            ) from None
        return Outcome(_OF_OP[op](value, heard))


class _Heard:
    """What the program in the sandbox says before its end: passed on as it comes, but for lines
    that are long, and kept once it has ended."""

    def __init__(self, call: Call, most: int) -> None:
        self.streams = {"stdout": bytearray(), "stderr": bytearray()}
        self.displays: list[_Bundle] = []
        self.truncated = False
        self._call = call
        self._most = most
        self._live = _Bounded(most)
        self._rest = bytearray()
        self._length = 0  # of the line that is to be ended

    def feed(self, stream: str, data: bytes) -> None:
        """Raises CallFailed "script_failed" where it is not as our program writes it."""
        if stream != "stderr":
            return
        *ends, rest = data.split(b"\n")
        for end in ends:
            self._add(end)
            if self._length <= _MAX_LIVE:
                self._pass_on(*self._live.take(bytes(self._rest)))
            self._rest.clear()
            self._length = 0
        self._add(rest)

    def _add(self, data: bytes) -> None:
        self._length += len(data)
        if self._length > _MAX_LINE:
            raise _broken("a line without end")
        if self._length <= _MAX_LIVE:
            self._rest += data

    def keep(self, said: bytes) -> None:
        """Keep all that it said and ``feed`` has seen. Raises CallFailed as that."""
        bounded, begin = _Bounded(self._most), 0
        while (end := said.find(b"\n", begin)) >= 0:
            line = said[begin:end]
            begin = end + 1
            kind, data = bounded.take(line)
            if len(line) > _MAX_LIVE:
                self._pass_on(kind, data)
            if kind == "display" and data:
                self.displays.append(_DISPLAY.decode(data))
            elif kind != "display":
                self.streams[kind] += data
        self.truncated = bounded.truncated

    def text(self, stream: str) -> str:
        """Return what was kept; the bound cuts through no character."""
        data = bytes(self.streams[stream])
        return (whole_characters(data) if self.truncated else data).decode(errors="replace")

    def _pass_on(self, kind: str, data: bytes) -> None:
        if data:
            self._call.emit(kind, data)


class _Bounded:
    """Bounds all that the lines say, together."""

    def __init__(self, most: int) -> None:
        self.truncated = False
        self._left = {"stdout": most, "stderr": most, "display": _MAX_DISPLAY_BYTES}
        self._displays = 0

    def take(self, line: bytes) -> tuple[str, bytes]:
        """Return what one says: its kind, and as much as there is room for. Raises CallFailed."""
        try:
            heard = _LINE.decode(line)
            kind, data = heard.kind, heard.data
            if kind == "display":
                if typed.has_more_values(data, _MAX_FORMS):
                    raise _broken("a display of too many forms")
                _DISPLAY.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise _broken(str(error)) from None
        kept = data[: self._left[kind]]
        if kind == "display":  # whole, or not at all
            self._displays += 1
            kept = data if len(kept) == len(data) and self._displays <= MAX_DISPLAYS else b""
        self._left[kind] -= len(data) if kind == "display" else len(kept)
        self.truncated = self.truncated or len(kept) < len(data)
        return kind, kept


def _ran(value: _Value, heard: _Heard) -> dict[str, Any]:
    return {
        "status": value.status,
        "result": value.result,
        "displays": heard.displays,
        "stdout": heard.text("stdout"),
        "stderr": heard.text("stderr"),
        "error": None if value.error is None else msgspec.to_builtins(value.error),
        "execution_count": value.execution_count,
        "kernel": value.kernel,
        "reset": value.reset,
        "truncated": value.truncated or heard.truncated,
    }


_OF_OP: dict[str, Any] = {
    "run": _ran,
    "interrupt": lambda value, heard: {"interrupted": value.interrupted},
    "reset": lambda value, heard: {"reset": value.reset},
    "list": lambda value, heard: {"contexts": msgspec.to_builtins(value.contexts)},
}


@functools.cache
def _sources() -> list[list[str]]:
    """Return the kernel's modules in the order in which it loads them, the one with ``main``
    last."""
    here = "agentd.capability.inside"
    order = ("python_bundle", "python_server", "python_kernel", "python_jupyter", "python_engine")
    return [[f"{here}.{name}", script.source(name)] for name in (*order, "python_main")]


def _broken(cause: str) -> CallFailed:
    return CallFailed(
        "script_failed",
        "the sandbox's Python did not answer as it should",
        cause=script.safe(cause),
        remediation="look at what python3 is in the sandbox",
    )


CAPABILITY = PythonExec()
