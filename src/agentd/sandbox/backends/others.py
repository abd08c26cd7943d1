"""What third parties' backends build: whatever it raises is told as theirs.

A method of theirs may raise anything, SystemExit too, wherever it is called: at each call that
would be an error of ours, or the end of who embeds us.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

from agentd.model.enforcement import Control
from agentd.model.errors import AgentdError, SandboxError
from agentd.sandbox import backends
from agentd.sandbox.ports import Backend, Plan, Restores, Wall

_ENDS = ("begin_kill", "end", "kill")
_MEMBERS = tuple(name for name in vars(Wall) if not name.startswith("_"))


@contextlib.contextmanager
def of_others(name: str, what: str) -> Iterator[None]:
    """Have an error of ours say what a third party's backend raised as it was ``what``."""
    try:
        yield
    except backends.ANYTHING as error:
        if isinstance(error, AgentdError) or name in backends.BUILTIN:
            raise
        why = backends.broken(what, error)
        raise SandboxError(f"backend {name} {why.what}", remediation=why.fix) from error


def launch(backend: Backend, plan: Plan) -> Wall:
    """Return the wall that it builds. Raises what it raises, and TypeError for what is no wall."""
    return _wall(backend.name, backend.launch(plan), "launch")


def restore(name: str, backend: Restores, plan: Plan, folder: str) -> Wall:
    """Return the wall that it builds from a snapshot. Raises as ``launch``."""
    return _wall(name, backend.restore(plan, folder), "restore")


def _wall(name: str, made: Wall | None, how: str) -> Wall:
    """Return what was made, a third party's so that whatever it raises is told as theirs."""
    if made is None:
        raise TypeError(f"{how}() returned None, and no wall")
    if name in backends.BUILTIN:
        return made
    try:
        return cast("Wall", OthersWall(name, made))
    except backends.ANYTHING:
        with contextlib.suppress(*backends.ANYTHING):  # nothing is left behind
            made.kill()
        raise


class OthersWall:
    """A third party's wall, with all that it has: what its methods raise is said by ``of_others``.

    Raises TypeError for what is no wall, or says nothing that a report could have of what is in
    force."""

    def __init__(self, name: str, wall: object) -> None:
        self._name = name
        self._wall = wall
        if absent := [each for each in _MEMBERS if not hasattr(wall, each)]:
            raise TypeError(f"its wall has no {', '.join(absent)}")
        held = wall.enforcement  # type: ignore[attr-defined]  # it was just looked for
        if not isinstance(held, Mapping) or not all(
            isinstance(control, str) and isinstance(told, Control) for control, told in held.items()
        ):
            raise TypeError("the enforcement of its wall is no mapping of names to Controls")

    def __getattr__(self, name: str) -> Any:
        what = "ended" if name in _ENDS else "used"
        try:
            found = getattr(self._wall, name)
        except AttributeError:  # as of any that has no such method
            raise
        except backends.ANYTHING:
            with of_others(self._name, what):
                raise
        return partial(self._call, found, what) if callable(found) else found

    def _call(self, method: Callable[..., Any], what: str, *args: Any, **kwargs: Any) -> Any:
        with of_others(self._name, what):
            return method(*args, **kwargs)
