"""Our interpreter: runs a piece of code in one lasting namespace, and tells what came of it."""

import ast
import builtins
import contextlib
import inspect
import io
import linecache
import os
import sys
import threading
import types
import warnings
from traceback import TracebackException
from typing import Any, Callable, NoReturn  # noqa: UP035  (Python 3.9)

from agentd.capability.inside.python_bundle import bounded, bundle_of, clean
from agentd.capability.inside.python_server import KernelServer

MAX_CELLS = 500  # whose source tracebacks can show
MAX_TRACEBACK = 64 << 10
MAX_MESSAGE = 4 << 10
_MAX_FRAMES = 64


class OwnEngine:
    name = "builtin"

    def __init__(self, server: KernelServer) -> None:
        self._server = server
        self._busy = False
        self._count = 0
        self._loop: Any = None
        self._task: Any = None
        self._sending = threading.Lock()
        self._module = types.ModuleType("__main__")
        self._namespace = self._module.__dict__
        self._namespace.update({"__builtins__": builtins, "display": self.display})
        sys.modules["__main__"] = self._module
        sys.argv = [""]
        sys.path.insert(0, "")
        builtins.input = _no_input
        os.environ.setdefault("MPLBACKEND", "agg")
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        # The first ones are buffered by the block, for they were no terminal.
        self._streams(anew=True)

    def interrupt(self) -> None:
        """Interrupt, in a signal handler: cancel a task; if that does nothing, break it off."""
        if not self._busy:
            return
        if self._task is not None and not self._task.cancelling_by_us:
            self._task.cancelling_by_us = True
            self._loop.call_soon_threadsafe(self._task.task.cancel)
            return
        raise KeyboardInterrupt

    def display(self, *values: object) -> None:
        """Show values now, in their richest forms."""
        for value in values:
            if os.getpid() != self._server.pid:
                print(repr(value))
            else:
                self._show(bundle_of(value))

    def run(self, code: str) -> "dict[str, Any]":
        self._count += 1
        self._streams()
        status, result, error = self._attempt(lambda: self._evaluate(code))
        figures = self._attempt(self._figures)
        if status == "ok" and figures[0] == "interrupted":
            status, error = "interrupted", figures[2]
        self._attempt(_flush)
        if os.getpid() != self._server.pid:
            os._exit(0 if status == "ok" else 1)
        return {"status": status, "result": result, "error": error, "execution_count": self._count}

    def _evaluate(self, code: str) -> "dict[str, str] | None":
        name = f"<cell {self._count}>"
        lines = code.splitlines(True)
        _LINES[name] = (len(code), None, lines, name)
        _LINES.pop(f"<cell {self._count - MAX_CELLS}>", None)
        if "\0" in code:  # a ValueError, before Python 3.11.4
            raise SyntaxError("source code string cannot contain null bytes")
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr):
            self._execute(compile(tree, name, "exec", **_FLAGS))
            return None
        del tree.body[-1]
        first = compile(tree, name, "exec", **_FLAGS)
        second = compile(ast.Expression(last.value), name, "eval", **_FLAGS)
        self._execute(first)
        value = self._execute(second)
        if value is None:
            return None
        self._namespace["_"] = value
        return bundle_of(value)

    def _execute(self, code: types.CodeType) -> Any:
        value = eval(code, self._namespace)  # noqa: S307  (it is what this is for)
        return self._await(value) if code.co_flags & inspect.CO_COROUTINE else value

    def _await(self, coroutine: Any) -> Any:
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        self._task = _Task(task)
        try:
            return self._loop.run_until_complete(task)
        except asyncio.CancelledError:
            if self._task.cancelling_by_us:
                raise KeyboardInterrupt from None
            raise
        finally:
            self._task = None
            if task.done() and not task.cancelled():
                task.exception()  # else asyncio complains of it

    def _attempt(self, work: Callable[[], Any]) -> "tuple[str, Any, dict[str, str] | None]":
        """Status, value, error; interrupts are let in while ``work`` runs, and only then."""
        try:
            try:
                self._busy = True
                return "ok", work(), None
            finally:
                self._busy = False
        except KeyboardInterrupt as error:
            self._busy = False
            return "interrupted", None, self._describe(error)
        except BaseException as error:
            return "error", None, self._describe(error)

    def _describe(self, error: BaseException) -> "dict[str, str]":
        """Describe an error: its words are code of its own, which may fail, or never end."""
        name = str(type(error).__name__)[:200]
        try:
            self._busy = True
            value = clean(str(error), MAX_MESSAGE)
            text = _traceback(error)
        except BaseException:
            value, text = "", f"{name}: its description failed\n"
        finally:
            self._busy = False
        return {"name": name, "value": value, "traceback": text}

    def _figures(self) -> None:
        """Return what matplotlib has drawn and nobody has saved."""
        plots = sys.modules.get("matplotlib.pyplot")
        if plots is None or not callable(getattr(plots, "get_fignums", None)):
            return
        for number in plots.get_fignums()[:16]:
            image = io.BytesIO()
            plots.figure(number).savefig(image, format="png", bbox_inches="tight")
            plain = f"<Figure {number}>"
            self._show(bounded({"text/plain": plain, "image/png": image.getvalue()}))
        plots.close("all")

    def _show(self, bundle: "dict[str, str]") -> None:
        with self._sending:
            self._server.send({"display": bundle})

    def _streams(self, *, anew: bool = False) -> None:
        """Text streams over descriptors 1 and 2, where code has closed those of before."""
        for name, fd in (("stdout", 1), ("stderr", 2)):
            if anew or getattr(getattr(sys, name), "closed", True):
                setattr(sys, name, _writer(fd))
                setattr(sys, f"__{name}__", getattr(sys, name))
        if getattr(sys.stdin, "closed", True):
            sys.stdin = open(0, closefd=False)  # noqa: SIM115


class _Task:
    def __init__(self, task: Any) -> None:
        self.task = task
        self.cancelling_by_us = False


# Held: code may replace what it finds in modules.
_LINES: "dict[str, Any]" = linecache.cache
_FLAGS: "dict[str, Any]" = {"flags": ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, "dont_inherit": True}


def _writer(fd: int) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _traceback(error: BaseException) -> str:
    """Begin it at the caller's code: how that came to run is no part of it."""
    trace = error.__traceback__
    while trace is not None and not trace.tb_frame.f_code.co_filename.startswith("<cell "):
        trace = trace.tb_next
    told = TracebackException(type(error), error, trace, limit=_MAX_FRAMES)
    told.stack[:] = [one for one in told.stack if not one.filename.startswith("<agentd.")]
    text = "".join(told.format())
    return clean(text[-MAX_TRACEBACK:], MAX_TRACEBACK)


def _no_input(prompt: object = "") -> NoReturn:
    raise EOFError("input() cannot be answered here: pass values in the code")
