"""What ``agentd run``, ``call`` and ``image`` show while something slow is made."""

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.client.cli.remote import safe
from agentd.sandbox.progress import NOTE

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Display:
    """A listener of ``sandbox.progress``: a bar where stderr is a terminal, else a line a stage.

    Nothing is shown, and nothing of it imported, before something is reported.
    """

    def __init__(
        self,
        command: str = "run",
        *,
        silent: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """``check`` is called at each report, and may raise to give the work up."""
        self._command = command
        self._silent = silent
        self._check = check
        self._stage = ""
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        self._check()
        if self._silent:
            return
        shown = safe(stage.removeprefix(NOTE))
        if os.isatty(2) and not stage.startswith(NOTE):
            self._draw(shown, fraction)
        elif stage != self._stage:
            print(f"agentd {self._command}: {shown}", file=sys.stderr, flush=True)
        self._stage = stage

    def step(self, what: str, done: int, total: int) -> None:
        """Show a step of an image's making, as a stage; what is noted of it is told at its end."""
        if not what.startswith(NOTE):
            self(what, done / total if total else None)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exc: object) -> None:
        """The bar goes; the terminal is as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _draw(self, stage: str, fraction: float | None) -> None:
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
        if self._task is None or stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(stage, total=None)
        if fraction is not None:
            self._bar.update(self._task, total=1.0, completed=min(max(fraction, 0.0), 1.0))
        self._bar.refresh()


def _new_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        # No thread of its own: processes are started while it is up.
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
