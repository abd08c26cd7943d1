"""What the terminator's connections have in common, and what its host and the relay tell it."""

import asyncio
import io
import json
import socket
import ssl
from functools import partial
from typing import Any

from OpenSSL import SSL

from agentd.egress import rows
from agentd.egress.mark import Mark
from agentd.egress.table import EgressTable
from agentd.egress.terminator.certificates import LeafIssuer
from agentd.egress.terminator.connection import ReadConnection
from agentd.egress.terminator.credentials import Credentials, convert_secrets
from agentd.egress.terminator.marking import OWNER
from agentd.egress.terminator.metering import ConnectionMeter, TrafficPace
from agentd.egress.terminator.recording import CassetteRoom, CassetteWriter
from agentd.egress.terminator.records import RequestRecords
from agentd.egress.terminator.replaying import CassettePlayer
from agentd.linux import rights

_MAX_LINK_MESSAGE = 4096
_ENDS = 2
_TURNS = 32  # connections, then those that are there have theirs
_REST_SECONDS = 0.1


class ReadSandbox:
    """One sandbox whose connections are read, as far as its rules say."""

    def __init__(self, id_: int, issuer: LeafIssuer, credentials: Credentials) -> None:
        self.id = id_
        self.issuer = issuer
        self.credentials = credentials
        self.table = EgressTable({"rules": [], "hosts": {}})
        self.connections: set[ReadConnection] = set()
        self.pace = TrafficPace()
        #: What its exchanges are written to; what they are answered from.
        self.recording: CassetteWriter | None = None
        self.player: CassettePlayer | None = None


class Terminator:
    """Serves until its host closes the control socket."""

    def __init__(
        self, control: socket.socket, client: SSL.Context, upstream: ssl.SSLContext, mark: Mark
    ) -> None:
        control.setblocking(False)
        self._control, self._mark = control, mark
        self.client_context, self.upstream_context = client, upstream
        self.records = RequestRecords(control)
        self._sandboxes: dict[int, ReadSandbox] = {}
        self._room = CassetteRoom()
        self._links: set[RelayLink] = set()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, about: self.records.fault(about.get("exception") or about.get("message", ""))
        )
        loop.add_reader(self._control.fileno(), self._hear)
        await loop.create_future()

    def connect(
        self, link: "RelayLink", message: dict[str, Any], ends: list[socket.socket]
    ) -> None:
        """Take over a connection that the relay has made."""
        sandbox = self._sandboxes.get(message["sandbox"])
        to = str(message["name"]), int(message["port"])
        why = _hindrance(sandbox, to, ends)
        if sandbox is None or why:
            for sock in ends:
                sock.close()
            link.ended(message["n"], why, (0, 0))
            return
        connection = ReadConnection(self, sandbox, message["n"], to, ends)
        if "room" in message:
            tell = partial(link.moved, connection)
            sandbox.pace.allow(message["room"])
            connection.meter = ConnectionMeter(sandbox.pace, tell)
        outer = OWNER.set(sandbox.id)
        task = asyncio.ensure_future(connection.run())
        OWNER.reset(outer)
        sandbox.connections.add(connection)
        link.tasks[task] = connection

        def ended(_: "asyncio.Task[None]") -> None:
            sandbox.connections.discard(connection)
            link.tasks.pop(task, None)
            connection.close()
            if connection.meter is not None:
                connection.meter.told()
            link.ended(connection.n, connection.reason, connection.moved)
            if not task.cancelled() and (error := task.exception()) is not None:
                self.records.fault(error)

        task.add_done_callback(ended)

    def unlink(self, link: "RelayLink") -> None:
        self._links.discard(link)

    # --- what the host says ---

    def _hear(self) -> None:
        if (heard := rows.receive(self._control, 1)) is None:
            return
        message, fds, _ = heard
        self._mark[0] = message.get("admit", message.get("set", 0))
        self._do(message, fds)
        self._mark[0] = 0

    def _do(self, message: dict[str, Any], fds: list[int]) -> None:
        if "cassette" in message:
            self._use_cassette(message, fds)
        elif "count_for" in message:
            self._count_for(*message["count_for"])
        elif "relay" in message:
            for fd in fds:
                self._links.add(RelayLink(self, socket.socket(fileno=fd)))
        elif "admit" in message:
            self._admit(message)
        elif "set" in message:
            self._set(message["set"], message["table"])
        elif "release" in message:
            self._release(message["release"])
        elif "going_on" in message:
            self._tell_what_goes_on(message["going_on"])
        elif "sync" in message:
            self.records.sync(message["sync"])

    def _admit(self, message: dict[str, Any]) -> None:
        """A sandbox, or other secrets of one that is known."""
        id_, credentials = message["admit"], convert_secrets(message["secrets"])
        if id_ in self._sandboxes:
            self._sandboxes[id_].credentials = credentials
            return
        issuer = LeafIssuer(message["key"], message["certificate"])
        self._sandboxes[id_] = ReadSandbox(id_, issuer, credentials)

    def _set(self, id_: int, table: dict[str, Any]) -> None:
        sandbox = self._sandboxes.get(id_)
        if sandbox is None:
            return
        sandbox.table = EgressTable(table)
        sandbox.pace.change(table)
        for connection in list(sandbox.connections):
            connection.rules_changed()

    def _use_cassette(self, message: dict[str, Any], fds: list[int]) -> None:
        """One of a sandbox that is known, to be written from where it stands or to be played."""
        sandbox = self._sandboxes.get(message["cassette"])
        for fd in fds:
            file = io.FileIO(fd, "r+")
            if sandbox is None:
                file.close()
            elif "begun" in message:
                size, count = message["begun"]
                sandbox.recording = CassetteWriter(file, (size, count), self._room)
            else:
                sandbox.player = CassettePlayer(file)

    def _count_for(self, id_: int, owner: str) -> None:
        sandbox = self._sandboxes.get(id_)
        if sandbox is not None and sandbox.recording is not None:
            sandbox.recording.count_for(owner)

    def _tell_what_goes_on(self, id_: int) -> None:
        sandbox = self._sandboxes.get(id_)
        if sandbox is None or sandbox.recording is None:
            return
        self.records.written(id_, sandbox.recording.written)
        for connection in sandbox.connections:
            exchange = connection.exchange
            if exchange is not None and exchange.is_open:
                self.records.going_on(connection, exchange.head)

    def _release(self, id_: int) -> None:
        """The relay has ended its connections, or does so now."""
        sandbox = self._sandboxes.pop(id_, None)
        if sandbox is not None and sandbox.recording is not None:
            sandbox.recording.end()


def _hindrance(sandbox: ReadSandbox | None, to: tuple[str, int], ends: list[socket.socket]) -> str:
    """Return why a connection cannot be taken over; "" where it can."""
    if sandbox is None:
        return "it is of no sandbox that is known"
    if len(ends) != (1 if sandbox.table.replays else _ENDS):
        return "no descriptors are left for it"
    if sandbox.table.is_terminated(*to) and sandbox.credentials.for_host(*to) is None:
        return "the secrets that are for it are not known"
    return ""


class RelayLink:
    """The socket over which one relay passes connections. When it ends, so do they."""

    def __init__(self, terminator: Terminator, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._terminator, self._sock = terminator, sock
        self.tasks: dict[asyncio.Task[None], ReadConnection] = {}
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._rests = False
        self._loop.add_reader(sock.fileno(), self._hear)

    def moved(self, connection: ReadConnection, over: bool) -> None:
        """Tell what it has moved until now, and whether it had no room for more."""
        sent, received = connection.moved
        message = {"moved": connection.n, "sent": sent, "received": received, "over": over}
        self._unsent.append(json.dumps(message).encode())
        self._flush()

    def ended(self, n: int, reason: str, moved: tuple[int, int]) -> None:
        message = {"ended": n, "reason": reason[:300], "sent": moved[0], "received": moved[1]}
        self._unsent.append(json.dumps(message).encode())
        self._flush()

    def _go_on(self) -> None:
        self._rests = False
        self._flush()

    def _flush(self) -> None:
        if self._sock.fileno() < 0 or self._rests:
            return
        while self._unsent:
            try:
                self._sock.send(self._unsent[0], socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError as error:
                if error.errno in rights.NO_ROOM:  # of which no event tells, or one all the time
                    self._loop.remove_writer(self._sock.fileno())
                    self._rests = True
                    self._loop.call_later(_REST_SECONDS, self._go_on)
                else:
                    self._unsent.clear()  # it is gone, as is read soon
                return
            del self._unsent[0]
        self._loop.remove_writer(self._sock.fileno())

    def _hear(self) -> None:
        for _ in range(_TURNS):
            if not self._take():
                return

    def _take(self) -> bool:
        """Take one connection over; False where there is none, or no more."""
        try:
            data, fds, flags = rights.receive(
                self._sock, _MAX_LINK_MESSAGE, _ENDS, socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return False
        except OSError:
            data, fds, flags = b"", [], 0
        ends = [socket.socket(fileno=fd) for fd in fds]
        if not data:
            self._close()
            return False
        if flags & socket.MSG_CTRUNC:  # no descriptor is left
            for sock in ends:
                sock.close()
            ends = []
        self._terminator.connect(self, json.loads(data), ends)
        return True

    def _close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for task, connection in list(self.tasks.items()):
            connection.reason = "the relay is gone"
            task.cancel()
        self._terminator.unlink(self)
