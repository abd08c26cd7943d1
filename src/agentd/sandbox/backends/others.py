"""What third parties' backends build: whatever it raises is told as theirs.

A method of theirs may raise anything, SystemExit too, wherever it is called: at each call that
would be an error of ours, or the end of who embeds us.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import msgspec

from agentd.model import typed
from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError, SandboxError
from agentd.model.result import Cause
from agentd.sandbox import backends
from agentd.sandbox.abilities import FORWARDED
from agentd.sandbox.ports import Backend, Plan, Restores, Wall

UNBUILT = "the sandbox could not be built"
_ENDS = ("begin_kill", "end", "kill")
_MEMBERS = tuple(name for name in vars(Wall) if not name.startswith("_"))
#: What its attributes must be, those that it has.
_ATTRIBUTES: dict[str, Any] = {
    "enforcement": dict[str, Control],
    "workspace": str,
    "passes_descriptors": bool,
    "fidelity": str,
    "lacks": dict[str, str],
    "workdir": str | None,
    "command": tuple[str, ...],
    "pipe_owner": tuple[int, int] | None,
    "pipe_bytes": int,
    "counted": dict[str, Any] | None,
}
#: What its methods must return, those that return something to go by.
_RESULTS: dict[str, Any] = {
    "open_stream": socket.socket,
    "counters": dict[str, int],
    "usage": dict[str, int],
    "save": dict[str, Any],
    "ending": Cause | None,
    "first_process": int | None,
} | {
    method.name: method.result
    for ability in FORWARDED
    for method in ability.methods
    if method.result is not None
}


@contextlib.contextmanager
def of_others(backend: Backend, what: str) -> Iterator[None]:
    """Have an error of ours say what a third party's backend raised as it was ``what``."""
    with _theirs(backend.name, what) if backends.is_others(backend) else contextlib.nullcontext():
        yield


def launch(backend: Backend, plan: Plan) -> Wall:
    """Return the wall that it builds. Raises what one of ours raises, SandboxError for another."""
    return _built(backend, "launch", lambda: backend.launch(plan))


def restore(backend: Backend, restores: Restores, plan: Plan, folder: str) -> Wall:
    """Return the wall that it builds from a snapshot. Raises as ``launch``."""
    return _built(backend, "restore", lambda: restores.restore(plan, folder))


def _built(backend: Backend, how: str, build: Callable[[], Wall | None]) -> Wall:
    """Return what is built, a third party's so that whatever it raises is told as theirs."""
    if not backends.is_others(backend):
        return cast("Wall", build())
    try:
        made = build()
        if made is None:
            raise TypeError(f"{how}() returned None, and no wall")
        try:
            return cast("Wall", OthersWall(backend.name, made))
        except backends.ANYTHING:
            with contextlib.suppress(*backends.ANYTHING):  # nothing is left behind
                made.kill()
            raise
    except backends.ANYTHING as error:
        if isinstance(error, AgentdError):
            raise
        why = backends.broken("used", error)
        cause = f"backend {backend.name} {why.what}"
        raise SandboxError(UNBUILT, cause=cause, remediation=why.fix) from error


@contextlib.contextmanager
def _theirs(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except backends.ANYTHING as error:
        if isinstance(error, AgentdError):
            raise
        why = backends.broken(what, error)
        raise SandboxError(f"backend {name} {why.what}", remediation=why.fix) from error


class OthersWall:
    """A third party's wall, with all that it has: what its methods raise, and what is not of the
    type that it must be, is said as theirs.

    Raises TypeError for what is no wall."""

    def __init__(self, name: str, wall: object) -> None:
        self._name = name
        self._wall = wall
        if absent := [each for each in _MEMBERS if not hasattr(wall, each)]:
            raise TypeError(f"its wall has no {', '.join(absent)}")
        for each, kind in _ATTRIBUTES.items():
            with contextlib.suppress(AttributeError):  # which not every wall has
                _checked(f"the {each} of its wall", getattr(wall, each), kind)

    def __getattr__(self, name: str) -> Any:
        what = "ended" if name in _ENDS else "used"
        try:
            found = getattr(self._wall, name)
        except AttributeError:  # as of any that has no such method
            raise
        except backends.ANYTHING:
            with _theirs(self._name, what):
                raise
        if callable(found):
            return partial(self._call, name, found, what)
        with _theirs(self._name, what):
            return _checked(f"the {name} of its wall", found, _ATTRIBUTES.get(name, Any))

    def _call(
        self, name: str, method: Callable[..., Any], what: str, *args: Any, **more: Any
    ) -> Any:
        with _theirs(self._name, what):
            returned = method(*args, **more)
            return _checked(f"what {name}() returns", returned, _RESULTS.get(name, Any))


def _checked(what: str, value: object, kind: Any) -> Any:
    """Raises TypeError for what is not of that kind."""
    try:
        return value if kind is Any else typed.convert(value, kind)
    except msgspec.ValidationError as error:
        raise TypeError(f"{what} is wrong: {error}") from error
