"""What happens to a caller's sandboxes."""

import threading
import time
from collections.abc import Callable

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.events import EventPage, wait_seconds


class DaemonEvents(Noun):
    """Implements ``model.door.DoorEvents``."""

    @observed("events")
    def read(self, after: str = "", *, limit: int = 100, wait: str | float = 0) -> EventPage:
        self._who.require("read")
        seconds = wait_seconds(wait)
        if not seconds:
            return self._parts.events.read(self._who, after, limit)
        end, more = time.monotonic() + seconds, threading.Event()
        stop = self._parts.events.listen(self._who, more.set)
        try:
            while True:
                more.clear()
                page = self._parts.events.read(self._who, after, limit)
                left = end - time.monotonic()
                if page.events or page.lost or left <= 0:
                    return page
                more.wait(left)
        finally:
            stop()

    def listen(self, notify: Callable[[], object]) -> Callable[[], None]:
        self._who.require("read")
        return self._parts.events.listen(self._who, notify)
