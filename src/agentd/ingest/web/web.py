"""What all doors over HTTP share: limits, threads, and the streams that end when agentd drains."""

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from agentd.ingest.web.limits import WebLimits
from agentd.ingest.web.rooms import ThreadRooms
from agentd.model.holds import Holds
from agentd.model.port import PortDomain


class Stoppable(Protocol):
    def stop(self) -> None: ...


class MetricsSource(msgspec.Struct, frozen=True):
    """Gives them by ``text`` in Prometheus' format, from any thread; ``public``: to anybody."""

    text: Callable[[], bytes]
    public: bool = False


class Web:
    """Holds what doors share; belongs to the event loop. ``metrics`` are the process's, None where
    it counts nothing; ``ready`` tells why it takes no work, "" where it does. Below ``domains`` are
    the hosts of sandboxes' ports."""

    def __init__(
        self,
        limits: WebLimits | None = None,
        metrics: MetricsSource | None = None,
        ready: Callable[[], str] = str,
        domains: Sequence[PortDomain] = (PortDomain(),),
    ) -> None:
        self.limits = limits or WebLimits()
        self.metrics = metrics
        self.ready = ready
        self.domains = tuple(domains)
        self.threads = ThreadRooms(self.limits)
        waits = "of requests and answers wait for their clients", "read the answers that wait"
        self.holds = Holds(self.limits.held, *waits)  # of requests
        # Of their own: a request that waits for room for its answer holds its body.
        self.answers = Holds(self.limits.held, *waits)
        self.draining = False
        self._streams: set[Stoppable] = set()

    def add(self, stream: Stoppable) -> None:
        """Register one that goes on for as long as its client wants: draining stops it."""
        self._streams.add(stream)
        if self.draining:
            stream.stop()

    def remove(self, stream: Stoppable) -> None:
        self._streams.discard(stream)

    def drain(self) -> None:
        """Take no new requests, and stop all streams. Idempotent."""
        self.draining = True
        for stream in tuple(self._streams):
            stream.stop()

    def close(self) -> None:
        self.answers.close()
        self.threads.close()
