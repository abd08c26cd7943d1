"""What the relay's parts have in common, and what its host tells it."""

import errno
import json
import resource
import socket
from functools import partial
from typing import Any

from agentd.egress import addresses, rows
from agentd.egress.mark import Mark
from agentd.egress.relay import refusal, synthetic
from agentd.egress.relay.budget import TrafficBudget
from agentd.egress.relay.closing import close
from agentd.egress.relay.connection import NEAR_BUFFER, RelayedConnection
from agentd.egress.relay.flow import SparePipes
from agentd.egress.relay.loop import IN, EventLoop, Handler
from agentd.egress.relay.nameserver import NameServer
from agentd.egress.relay.passing import Passing
from agentd.egress.relay.records import Reports
from agentd.egress.relay.refusal import HttpRefusal
from agentd.egress.relay.resolver import MAX_PENDING, Resolver, Upstream
from agentd.egress.relay.routes import KernelRoutes
from agentd.egress.relay.streams import MAX_BESIDE, GuestStream
from agentd.egress.relay.targets import Finder, spelled
from agentd.egress.relay.tenant import MAX_CONNECTIONS, MAX_DIALLING, Tenant
from agentd.egress.table import EgressTable
from agentd.linux import anyip

_MAX_SOCKETS = 8  # of a sandbox
_ACCEPTS = 32  # of a listener, then others have their turn
_SWEEP_SECONDS = 15.0
_PER_CONNECTION = 6  # descriptors: two sockets, a pipe each way
_SHARE = 4  # one sandbox has at most a quarter of them, however few there are
_RESERVED = MAX_PENDING + 64  # for names that are asked for, and what the interpreter has
_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_SECONDS = 0.1


class Relay:
    """Serves until its host closes the control socket."""

    def __init__(
        self, control: socket.socket, routes: KernelRoutes, mark: Mark | None = None
    ) -> None:
        self._control = control
        self.loop = EventLoop(lambda error: self.reports.fault(error), mark)  # noqa: PLW0108  (later)
        self.reports = Reports(self.loop, control)
        self.pipes = SparePipes()
        self.passing = Passing(self.loop)
        self._resolver = Resolver(self.loop)
        self.finder = Finder(self._resolver, routes)
        self._names = NameServer(self._resolver, self.finder, self.reports)
        self._tenants: dict[int, Tenant] = {}
        # Tables that sandboxes have alike are one: a thousand have the memory of one.
        self._tables: dict[str, tuple[EgressTable, set[int]]] = {}
        self._count = 0
        self._open = 0
        #: That streams of machines have, beside those of connections.
        self.descriptors = 0
        self._swept = False
        self._files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    def serve(self) -> None:
        self.loop.watch(self._control.fileno(), IN, self._hear)
        self.loop.run()

    def ended(self, connection: RelayedConnection) -> None:
        if connection.passed:  # who reads it says first what it moved
            self.reports.ending(connection.n)
            return
        self._open -= 1
        self.reports.ended(connection.n, connection.row())

    # --- what the host says ---

    def _hear(self, _mask: int) -> None:
        if (heard := rows.receive(self._control, _MAX_SOCKETS)) is None:
            return
        message, fds, whole = heard
        whose = (message[key] for key in ("admit", "set", "release", "answer") if key in message)
        self.loop.work_for(next(whose, 0))
        if "admit" in message:
            self._admit(message, fds, whole=whole)
        elif "set" in message:
            self._set(message["set"], message["table"])
        elif "answer" in message:
            self._answer(message)
        elif "release" in message:
            self._release(message["release"])
        elif "sync" in message:
            self.reports.sync(message["sync"])
        elif "terminator" in message:
            for fd in fds:
                self.passing.link(socket.socket(fileno=fd))
        elif "servers" in message:
            servers = [Upstream(*each) for each in message["servers"]]
            hosts = {name: tuple(found) for name, found in message["hosts"].items()}
            self._resolver.configure(servers, hosts)

    def _admit(self, message: dict[str, Any], fds: list[int], *, whole: bool) -> None:
        id_, table = message["admit"], message["table"]
        sockets = [socket.socket(fileno=fd) for fd in fds]
        if not whole:
            for sock in sockets:
                sock.close()
            self.reports.failed(id_, "the relay has no descriptors left for its sockets")
            return
        tenant = Tenant(id_, self._table(id_, table), sockets, self.loop, self.reports)
        self._bound(tenant, message.get("moved", 0))
        self._tenants[id_] = tenant
        for name in message["names"]:  # that it was told the addresses of by another relay
            tenant.synthetic.give(name, wild=tenant.is_wild(name))
        for sock in sockets:
            sock.setblocking(False)
            if sock.family == socket.AF_UNIX:
                handler: Handler = partial(self._accept_stream, tenant, sock)
            elif sock.type == socket.SOCK_STREAM:
                # What it accepts has these as well.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NEAR_BUFFER)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NEAR_BUFFER)
                v6 = sock.family == socket.AF_INET6
                handler = partial(self._accept, tenant, sock, v6)
            else:
                handler = self._names.handler(tenant, sock)
            self.loop.watch(sock.fileno(), IN, handler)

    def _set(self, id_: int, table: dict[str, Any]) -> None:
        """Other rules: what they do not allow ends."""
        tenant = self._tenants.get(id_)
        if tenant is None:
            return
        self._drop_table(id_)
        tenant.change(self._table(id_, table))
        self._bound(tenant)
        for connection in list(tenant.connections):
            connection.rules_changed()

    def _answer(self, message: dict[str, Any]) -> None:
        tenant = self._tenants.get(message["answer"])
        place = message["host"], message["port"]
        if tenant is not None and tenant.table.asks(*place):  # its rules may be others by now
            allowed, reason = message["allowed"], message["reason"]
            tenant.questions.answered(place, allowed, reason, message["seconds"])

    def _bound(self, tenant: Tenant, moved: int = 0) -> None:
        """Have its connections keep within what its table says; ``moved`` by a relay before us."""
        wire = tenant.table.wire.get("budget")
        if wire is None:
            if tenant.budget is not None:  # what is open has it
                tenant.budget.change({"bytes": None, "rate": None})
            tenant.budget = None
        elif tenant.budget is None:
            tell = partial(self.reports.spending, tenant)
            tenant.budget = TrafficBudget(self.loop, wire, moved, tell)
        else:
            tenant.budget.change(wire)

    def _release(self, id_: int) -> None:
        tenant = self._tenants.pop(id_, None)
        if tenant is None:
            return
        tenant.closed = True
        for sock in tenant.sockets:
            self.loop.forget(sock.fileno())
            sock.close()
        for connection in list(tenant.connections):
            connection.end("the sandbox ended", reset=True)
        for stream in list(tenant.streams):
            stream.close()
        for refused in list(tenant.told):
            refused.end(reset=True)
        self.reports.forget(tenant)
        self._drop_table(id_)

    def _table(self, id_: int, wire: dict[str, Any]) -> EgressTable:
        text = json.dumps(wire, sort_keys=True)
        if text not in self._tables:
            self._tables[text] = (EgressTable(wire), set())
        table, users = self._tables[text]
        users.add(id_)
        return table

    def _drop_table(self, id_: int) -> None:
        for text, (_, users) in list(self._tables.items()):
            users.discard(id_)
            if not users:
                del self._tables[text]

    # --- what sandboxes dial ---

    def _accept(self, tenant: Tenant, listener: socket.socket, v6: bool, _mask: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                client, _ = listener.accept()
            except OSError as error:
                # Else it is nothing more to accept, or one that went away: see accept(2).
                if error.errno in _SHORT:
                    self._pause(tenant, listener)
                return
            client.setblocking(False)
            try:
                to = anyip.destination(client, v6)
            except OSError:
                to = None
            if to is None:
                close(client, reset=True)
                continue
            self.take(tenant, client, *to)

    def _accept_stream(self, tenant: Tenant, listener: socket.socket, _mask: int) -> None:
        for _ in range(_ACCEPTS):
            try:
                stream, _ = listener.accept()
            except OSError as error:
                if error.errno in _SHORT:
                    self._pause(tenant, listener)
                return
            if len(tenant.streams) >= self._share() + MAX_BESIDE:
                stream.close()
                continue
            stream.setblocking(False)
            GuestStream(self, self._names, tenant, stream)

    def _pause(self, tenant: Tenant, listener: socket.socket) -> None:
        """What one dials waits for a moment: there are no descriptors, or no memory, for it."""

        def go_on() -> None:
            if not tenant.closed:
                self.loop.change(listener.fileno(), IN)

        self.loop.change(listener.fileno(), 0)
        self.loop.later(_PAUSE_SECONDS, go_on)

    def take(
        self, tenant: Tenant, client: socket.socket, address: bytes, port: int
    ) -> RelayedConnection | HttpRefusal | None:
        """Begin a connection to what a program dialled with ``client``, which is ours from now on.
        Where it may not be, the program is told so, or the connection is reset: None then."""
        number = synthetic.number_of(address)
        name = None if number is None else tenant.synthetic.name(number)
        text = spelled(address)
        if number is not None and name is None:
            return self._deny(tenant, client, ("", text, port), "", "no name has that address")
        if name is not None:
            verdict = tenant.verdict(name, port)
        else:
            verdict = tenant.table.of_address(addresses.parse(text), port)
        to = name or "", text, port
        if not verdict.allowed:
            fix = refusal.remedy(tenant.table, to[0], verdict.rule)
            return self._deny(tenant, client, to, verdict.rule, verdict.reason, fix)
        if why := (
            self._spent(tenant)
            or self._crowded(tenant)
            or (verdict.ask and tenant.questions.hindrance((name or text, port)))
            or ""
        ):
            return self._deny(tenant, client, to, verdict.rule, why)
        self._count += 1
        self._open += 1
        connection = RelayedConnection(self, tenant, client, (name, text, port), self._count)
        connection.begin(verdict)
        self._sweep_later()
        return connection

    def _most(self) -> int:
        """How many connections all sandboxes may have."""
        free = self._files - _RESERVED - _MAX_SOCKETS // 2 * len(self._tenants) - self.descriptors
        return max(free // _PER_CONNECTION, 0)

    def _share(self) -> int:
        """How many of them one may have."""
        return min(MAX_CONNECTIONS, max(self._most() // _SHARE, 1))

    @staticmethod
    def _spent(tenant: Tenant) -> str:
        return "" if tenant.budget is None else tenant.budget.over

    def _crowded(self, tenant: Tenant) -> str:
        if self._open >= self._most():
            return "the relay has no descriptors left"
        own = self._share()
        if len(tenant.connections) >= own:
            return f"{own} connections of the sandbox are open"
        if tenant.dialling >= MAX_DIALLING:
            return f"{MAX_DIALLING} connections of the sandbox are being made"
        return ""

    def _deny(
        self,
        tenant: Tenant,
        client: socket.socket,
        to: tuple[str, str, int],
        rule: str,
        why: str,
        fix: str = "",
    ) -> HttpRefusal | None:
        name, address, port = to
        row: dict[str, object] = {"sandbox": tenant.id, "name": name, "address": address}
        row |= {"port": port, "rule": rule, "allowed": False, "reason": why, "ended": True}
        self.reports.denied(tenant, (name or address, port, why), row)
        return refusal.tell(self, tenant, client, (name, port), rule, why, fix)

    # --- the rest ---

    def _sweep_later(self) -> None:
        if not self._swept:
            self._swept = True
            self.loop.later(_SWEEP_SECONDS, self._sweep, owner=0)

    def _sweep(self) -> None:
        self._swept = False
        for tenant in self._tenants.values():
            self.loop.work_for(tenant.id)
            for connection in list(tenant.connections):
                connection.sweep(self.loop.now)
        if self._open:
            self._sweep_later()
