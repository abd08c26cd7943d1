"""Sees that the daemon has a supervisor that answers, and starts another where it has none."""

import contextlib
import time
from collections.abc import Callable

from agentd.model.errors import AgentdError, SandboxError
from agentd.sandbox.supervisor import client

_ASK_SECONDS = 2.0  # between questions
_SILENT_SECONDS = 10.0  # without an answer
_GIVE_UP_SECONDS = 15.0  # without a supervisor
_SILENT = "its supervisor does not answer"


class Supervision:
    """``look`` is called now and then by one thread. ``trouble`` is why no sandbox can be made, and
    ``hopeless`` is set once there is no use in waiting."""

    def __init__(
        self,
        link: client.SupervisorLink,
        path: str,
        sort_out: Callable[[], int],
        lose_all: Callable[[], object],
        report: Callable[..., object],
    ) -> None:
        """``sort_out`` ends what a new supervisor does not have, and tells how many."""
        self._link = link
        self._path = path
        self._sort_out = sort_out
        self._lose_all = lose_all
        self._report = report
        self._lost_at = 0.0
        self._asked: client.PendingAnswer | None = None
        self._asked_at = time.monotonic()
        self.trouble = ""
        self.hopeless = False
        #: What the sandboxes' networks have done, as the supervisor said last.
        self.network: dict[str, int] = {}

    def look(self) -> None:
        if self._link.lost.is_set():
            self._replace()
        else:
            self._ask()

    def _replace(self) -> None:
        now = time.monotonic()
        if not self._lost_at:
            self._lost_at = now
            self.trouble = "its supervisor has ended, and another is being started"
            self._report("the supervisor has ended, and every sandbox with it")
        try:
            client.reconnect(self._link, self._path)
        except (AgentdError, OSError) as error:
            self._report("no other supervisor can be started", reason=str(error))
            self._lose_all()
            self.hopeless = now - self._lost_at > _GIVE_UP_SECONDS
            return
        lost = self._sort_out()
        self._lost_at, self._asked, self._asked_at, self.trouble = 0.0, None, now, ""
        self._report("went on with another supervisor", lost=lost)

    def _hear(self, answered: client.PendingAnswer) -> None:
        with contextlib.suppress(AgentdError):  # one that is about to end says so
            told, _ = answered.result()
            # A supervisor of before knows nothing of it.
            self.network = dict(told.get("network", {}))

    def _ask(self) -> None:
        now = time.monotonic()
        if self._asked is not None and not self._asked.answered:
            if now - self._asked_at > _SILENT_SECONDS:
                self.trouble = _SILENT
        elif self._asked is None or now - self._asked_at > _ASK_SECONDS:
            if self._asked is not None:
                self._hear(self._asked)
            self._asked_at = now
            try:
                self._asked = self._link.begin("hello")
            except SandboxError:  # its socket is full: it reads nothing
                self.trouble = _SILENT
                raise
            self._lost_at, self.trouble = 0.0, ""
