"""Where ``agentd audit`` reads: the log's files, or the daemon that writes it."""

import argparse
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from agentd.client.cli import kept, output
from agentd.client.http.errors import Unreachable
from agentd.model.errors import Forbidden, InvalidInput, NotFound

if TYPE_CHECKING:
    from agentd.audit.verify import LogVerdict
    from agentd.client.http.client import HttpClient
    from agentd.model.api import AuditHead
    from agentd.model.audit import Position

_POLL_SECONDS = 0.5


class Source(Protocol):
    """Reads a log; ``where`` it is. Each may raise AuditError, NoLog among them."""

    where: str

    def tail(self, count: int) -> list[bytes]: ...
    def lines(self, first: int, last: int | None) -> Iterator[bytes]: ...
    def follow(self, first: int) -> Iterator[bytes]: ...
    def verify(self, head: "Position | None") -> "LogVerdict": ...


class LogFiles:
    def __init__(self, directory: str) -> None:
        self.where = directory

    def tail(self, count: int) -> list[bytes]:
        from agentd.audit import read
        from agentd.audit.verify import no_log

        found = read.tail(self.where, count)
        if count and not found:
            raise no_log(self.where)
        return found

    def lines(self, first: int, last: int | None) -> Iterator[bytes]:
        from agentd.audit import read

        self.tail(1)
        return read.lines(self.where, first, last)

    def follow(self, first: int) -> Iterator[bytes]:
        from agentd.audit import read

        return read.follow(self.where, first)

    def verify(self, head: "Position | None") -> "LogVerdict":
        from agentd.audit.verify import verify

        return verify(self.where, head)


class Remote:
    """Asks for a page at a time. What it says of itself is checked here, not there."""

    def __init__(self, client: "HttpClient", known: "AuditHead") -> None:
        self._client = client
        self._known = known
        self.where = str(client.address)

    def tail(self, count: int) -> list[bytes]:
        from agentd.audit.verify import no_log

        last = self._position().seq
        found = list(self.lines(max(1, last - count + 1), last))[-count:] if count else []
        if count and not found:
            raise no_log(self.where)
        return found

    def lines(self, first: int, last: int | None) -> Iterator[bytes]:
        return self._lines(max(first, self._known.first), last or self._position().seq)

    def follow(self, first: int) -> Iterator[bytes]:
        while True:
            for line in self._lines(first, None):
                first += 1
                yield line
            time.sleep(_POLL_SECONDS)

    def verify(self, head: "Position | None") -> "LogVerdict":
        from agentd.audit.verify import verify_lines

        # Its own head as well, where no other is known: pages could be of several minds.
        return verify_lines(self.lines(1, None), head or self._position())

    def _position(self) -> "Position":
        from agentd.model.audit import Position

        return Position.parse(self._known.head)

    def _lines(self, first: int, last: int | None) -> Iterator[bytes]:
        import msgspec

        class LogPage(msgspec.Struct):
            records: list[msgspec.Raw]
            next: int | None = None

        at: int | None = first
        while at is not None and (last is None or at <= last):
            limit = 1000 if last is None else min(1000, last - at + 1)
            page = self._client.call(
                "GET", "/v1/audit/records", query={"from": at, "limit": limit}, into=LogPage
            )
            yield from (bytes(raw) + b"\n" for raw in page.records)
            at = page.next


def find(options: argparse.Namespace) -> Source:
    """Find it as the options say, else AGENTD_URL's, the usual daemon's, or files here."""
    from agentd.client.http import address
    from agentd.client.http.service import alone

    if options.url and (options.dir or options.embedded):
        raise InvalidInput("--url goes without --dir and --embedded", remediation="drop one")
    if not (options.dir or options.embedded):
        named = address.given(options.url)
        where = named or address.default()
        if where is not None:
            service = alone(where)
            try:
                known = service.audit.head()
            except (NotFound, Unreachable, Forbidden):
                if named:
                    raise
            else:
                if not named:
                    output.say(f"of the daemon at {where}", "audit")
                return Remote(service.requests, known)
    return LogFiles(directory(options))


def directory(options: argparse.Namespace) -> str:
    """Find its files' directory. Raises InvalidInput where a daemon is named: files are local."""
    if options.url or (os.environ.get("AGENTD_URL") and not (options.dir or options.embedded)):
        raise InvalidInput(
            "this is done to the log's files, not through a daemon",
            remediation="name their directory with --dir; a daemon's is STATE/audit",
        )
    return kept.directory(options, "audit", "audit")
