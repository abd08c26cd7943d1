"""One connection: what a program dialled, judged, dialled for it, and then bytes both ways.

Both ends are dialled and read at once; what the program says first is held back until it names the
host that was dialled (``hello``), where it names one. One that is refused is reset, so that the
program sees it. One that is read is the terminator's then (``passing``).
"""

import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentd.egress import addresses
from agentd.egress.relay import asking, hello
from agentd.egress.relay.closing import close, shut
from agentd.egress.relay.flow import Flow
from agentd.egress.relay.loop import BOTH, GONE, IN, OUT, Later
from agentd.egress.relay.opening import connecting, spoken
from agentd.egress.relay.targets import Targets
from agentd.egress.table import EgressTable, EgressVerdict

if TYPE_CHECKING:
    from agentd.egress.relay.relay import Relay
    from agentd.egress.relay.tenant import Tenant

TLS_PORT, HTTP_PORT = 443, 80
#: Seconds until both ends are there and the first words are said, after it was allowed; that one
#: address of several is tried; that it rests, in all and when one end has said all; that it lasts.
START_SECONDS, TRY_SECONDS = 20.0, 3.0
IDLE_SECONDS, HALF_SECONDS, TOTAL_SECONDS = 3600.0, 120.0, 86400.0
#: Bytes that the kernel holds of a connection for a program that does not read; by itself it would
#: take some megabytes, which the first FEW to other hosts have.
NEAR_BUFFER, FEW = 128 << 10, 32
_KEEPALIVE = 60  # seconds: middle boxes forget a connection that says nothing
_CLOSES = GONE | (BOTH & ~(IN | OUT))  # beside IN, which tells of the end, too
_READ_ENDS = IN | _CLOSES
_words = bytearray(max(hello.MAX_HELLO, hello.MAX_HEAD))

Gate = Callable[[bytes], "hello.First | None"]


class RelayedConnection:
    __slots__ = (
        "_attempt", "_began", "_client", "_down", "_ended", "_gate", "_kept", "_moved", "_place",
        "_places", "_reads", "_relay", "_start", "_strict", "_table", "_tenant",
        "_up", "_upstream", "address", "allowed", "asked", "connected", "moved_at", "n", "name",
        "over", "passed", "place", "port", "reason", "rule", "waits",
    )  # fmt: skip

    def __init__(
        self,
        relay: "Relay",
        tenant: "Tenant",
        client: socket.socket,
        to: tuple[str | None, str, int],
        n: int,
    ) -> None:
        """``to`` is the name, the address and the port that were dialled."""
        self._relay, self._tenant, self._client = relay, tenant, client
        self.name, self.address, self.port = to
        self.place = self.name or self.address, self.port  # as was dialled
        self.n = n
        self._began = self.moved_at = relay.loop.now
        self._gate: Gate | None = None
        self._strict = False
        self._table: EgressTable | None = None  # by which it was looked up
        self._upstream: socket.socket | None = None
        self._up: Flow | None = None
        self._down: Flow | None = None
        self._place: tuple[str, int] | None = None  # that was dialled last
        self._places: list[tuple[str, int]] = []
        self._attempt: Later | None = None
        self.connected = self.waits = self.asked = self.over = self._ended = self._kept = False
        self._reads = self.passed = False  # each request is judged; by the terminator, from now on
        self._moved = 0, 0  # by that
        self.allowed, self.rule, self.reason = True, "", ""
        tenant.dialling += 1
        tenant.connections.add(self)
        relay.reports.opened(n, self.row)
        self._start = relay.loop.later(START_SECONDS, self._late)

    def begin(self, verdict: EgressVerdict) -> None:
        """Dial what a rule allows, at once or once it is said that it may be."""
        if self.name is not None:
            self._strict = self.port == TLS_PORT
            self._gate = hello.host if self.port == HTTP_PORT else hello.server_name
            if verdict.read and self.port == HTTP_PORT:
                self._gate = None  # every request's is looked at
        ready = partial(self._guarded, self._client_ready)
        self._relay.loop.watch(self._client.fileno(), BOTH, ready)
        self._look_up(verdict)

    def rules_changed(self) -> None:
        """End it where these, or an answer, do not allow it; what is being dialled, or waits for
        that, is looked up anew."""
        verdict = self._judge()
        if not verdict.allowed:
            self.refuse(f"the rules were changed: {verdict.reason}")
        elif verdict.read != self._reads:
            how = "read" if verdict.read else "not read any more"
            self.end(f"the rules were changed: its requests are {how}", reset=True)
        elif self.waits:
            self._look_up(verdict)
        elif verdict.ask and not self._tenant.questions.allows(self.place):
            self.refuse("the rules were changed: it has to be asked about")
        elif self._upstream is not None and not self.connected:
            self._drop_upstream()
            self._look_up(verdict)

    def _look_up(self, verdict: EgressVerdict) -> None:
        self.rule, self._reads = verdict.rule, verdict.read
        if asking.holds(self, verdict, self._tenant.questions):
            return
        if self.name is None:
            self._found(self._relay.finder.of_number(self.address, self.port))
            return
        self._table = table = self._tenant.table
        if table.replays:  # whoever reads it answers, and nobody is dialled
            self._connect(said=False)
            return
        found = self._relay.finder.of_name(table, verdict, self.name, self.port, self._found)
        if found is not None:
            self._found(found)

    def allow_seconds(self, seconds: float = START_SECONDS) -> None:
        """End it where nothing has come of it in so many seconds, and tell how it stands now."""
        self._relay.reports.opened(self.n, self.row)
        self._start.cancel()
        self._start = self._relay.loop.later(seconds, self._late)

    def _judge(self) -> EgressVerdict:
        """What the rules of now say of it."""
        table = self._tenant.table
        if self.name is None:
            return table.of_address(addresses.parse(self.address), self.port)
        verdict = table.of_name(self.name, self.port)
        if not verdict.allowed or not self.connected:
            return verdict
        if table.static(self.name, self.port) == self._place:
            return verdict
        # The operator's own host is nobody's else.
        if why := self._relay.finder.hindrance(self.address):
            return EgressVerdict(False, verdict.rule, why)
        return table.of_answer(verdict, addresses.parse(self.address), self.port)

    @property
    def tenant(self) -> "Tenant":
        return self._tenant

    def moved(self, sent: int, received: int) -> None:
        """Count so many bytes that what reads its requests has moved until now."""
        more = sent + received - sum(self._moved)
        self._moved = sent, received
        self._tenant.spend(more)

    def was_read(self, reason: str) -> None:
        """End it, as nobody else has its ends now; ``reason`` is one to break it off for, or ""."""
        self.passed = False
        if self._ended:
            self._relay.ended(self)
        else:
            self.end(reason, reset=bool(reason))

    def refuse(self, reason: str) -> None:
        """End it as nothing that is allowed."""
        self.allowed = False
        self.end(reason, reset=True)

    def sweep(self, now: float) -> None:
        """End it where it rests too long, and keep alive one that lasts."""
        if not self._kept and self._upstream is not None:
            self._kept = True
            self._upstream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE)
        quiet = now - self.moved_at
        half = self._up is not None and (self._up.finished or self._down.finished)  # type: ignore[union-attr]
        if not self.passed and quiet > (HALF_SECONDS if half else IDLE_SECONDS):
            self.end(f"nothing was said for {quiet:.0f} s", reset=True)
        elif now - self._began > TOTAL_SECONDS:
            self.end(f"it lasted {TOTAL_SECONDS:.0f} s", reset=True)

    def row(self) -> dict[str, object]:
        return {
            "sandbox": self._tenant.id,
            "n": self.n,
            "name": self.name or "",
            "address": self.address,
            "port": self.port,
            "rule": self.rule,
            "allowed": self.allowed and not self.waits,
            "reason": asking.WAITING if self.waits and not self._ended else self.reason,
            "asked": self.asked,
            "sent": self._up.moved if self._up is not None else self._moved[0],
            "received": self._down.moved if self._down is not None else self._moved[1],
            "ms": round((self._relay.loop.now - self._began) * 1000, 1),
            "ended": self._ended,
        }

    def end(self, reason: str = "", *, reset: bool = False) -> None:
        """Close both ends, with ``reset`` so that the program sees an error. Idempotent."""
        if self._ended:
            return
        self._ended, self.reason = True, reason
        if not self.connected:
            self._tenant.dialling -= 1
        if self.waits:
            self._tenant.questions.forget(self)
        self._tenant.connections.discard(self)
        self._start.cancel()
        self.passed = self.passed and not self._relay.passing.take_back(self.n)
        for sock in (self._client, self._upstream) if self.passed else ():
            shut(sock, reset=reset)
        self._drop_upstream(reset=reset)
        for flow in (self._up, self._down):
            if flow is not None:
                flow.close()
        self._relay.loop.drop(self._client.fileno())
        close(self._client, reset=reset)
        self._relay.ended(self)

    # --- dialling ---

    def _found(self, targets: Targets) -> None:
        if self._ended:
            return
        if self._table is not None and self._table is not self._tenant.table:
            self._look_up(self._judge())  # the rules were changed while it was resolved
        elif targets.refused:
            self.refuse(targets.reason)
        elif not targets.places:
            self.end(targets.reason, reset=True)
        else:
            self._places = list(targets.places)
            self._dial()

    def _dial(self, why: int = 0) -> None:
        """Try the next place; ``why`` is the error of the last."""
        self._drop_upstream()
        while self._places:
            self._place = address, port = self._places.pop(0)
            upstream, why = connecting(address, port, small=len(self._tenant.connections) > FEW)
            if upstream is None:
                continue
            self._upstream, self.address = upstream, address
            ready = partial(self._guarded, self._upstream_ready)
            self._relay.loop.watch(upstream.fileno(), BOTH, ready)
            if why == 0:
                self._connect(said=False)
            elif self._places:
                late = self._relay.loop.later(TRY_SECONDS, lambda: self._dial(errno.ETIMEDOUT))
                self._attempt = late
            return
        self.end(f"{self.address} cannot be reached: {errno.errorcode.get(why, why)}", reset=True)

    def _connect(self, *, said: bool) -> None:
        """It is connected; ``said``: its host has said something already."""
        if self._attempt is not None:
            self._attempt.cancel()
        self.connected = True
        self._tenant.dialling -= 1
        self._places = []
        if self._upstream is not None:  # the program's end has that from its listener
            self._upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._settle()
        if self._reads or self._upstream is None:
            self._pass()
            return
        pipes, budget = self._relay.pipes, self._tenant.budget
        self._up = Flow(self._client, self._upstream, pipes, budget)
        self._down = Flow(self._upstream, self._client, pipes, budget)
        self._pump(up=True, down=said)

    def _drop_upstream(self, *, reset: bool = False) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._relay.loop.drop(upstream.fileno())
            close(upstream, reset=reset)

    def _late(self) -> None:
        if self.waits:
            self.refuse(f"nobody has said within {asking.ASK_SECONDS:.0f} s whether it is allowed")
        elif not self.connected:
            self.end(f"{self.address} did not answer within {START_SECONDS:.0f} s", reset=True)
        else:
            self.refuse(f"it said nothing whole within {START_SECONDS:.0f} s")

    def _settle(self) -> None:
        """Stop the clock of the start. What is neither TLS nor read may wait for its server."""
        awaited = self._strict or self._reads or self.port == HTTP_PORT
        if self.connected and not (self._gate and awaited):
            self._start.cancel()

    # --- what happens at the two ends ---

    def _guarded(self, ready: Callable[[int], None], mask: int) -> None:
        try:
            ready(mask)
        except OSError as error:
            self.end(errno.errorcode.get(error.errno or 0, str(error)), reset=True)
        except Exception:
            self.end("the relay failed", reset=True)
            raise

    def _client_ready(self, mask: int) -> None:
        self.over = self.over or bool(mask & _READ_ENDS & ~IN)  # nothing more comes
        if self._gate is not None and mask & _READ_ENDS:
            self._listen_in(over=self.over)
        if self._ended:
            return
        if self.connected and not self._reads:
            assert self._down is not None  # noqa: S101  (for the type checker)
            self._pump(up=bool(mask & _READ_ENDS), down=self._down.waits or bool(mask & GONE))
        elif mask & GONE:
            self.end("the program went away")

    def _upstream_ready(self, mask: int) -> None:
        if self.connected and not self._reads:
            assert self._up is not None  # noqa: S101  (for the type checker)
            self._pump(up=self._up.waits or bool(mask & GONE), down=bool(mask & _READ_ENDS))
            return
        assert self._upstream is not None  # noqa: S101  (for the type checker)
        if mask & GONE and self.connected:
            self.end("the host went away", reset=True)
        elif mask & GONE:
            why = self._upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._dial(why or errno.ECONNRESET)
        elif mask & OUT and not self.connected:
            self._connect(said=bool(mask & _READ_ENDS))
        if mask & IN and self.connected and self._reads and self._gate and spoken(self._upstream):
            self.refuse("its requests are to be read, and its host speaks first: that is no HTTP")

    def _pump(self, *, up: bool, down: bool) -> None:
        assert self._up is not None and self._down is not None  # noqa: S101
        before = self._up.moved + self._down.moved
        more_up = up and self._gate is None and self._up.pump()
        more_down = down and self._down.pump()
        if self._up.moved + self._down.moved != before:
            self.moved_at = self._relay.loop.now
        if self._up.finished and self._down.finished:
            self.end()
        elif more_up or more_down:
            self._relay.loop.soon(lambda: self._again(up=more_up, down=more_down))
        if self._up.starved or self._down.starved:
            self._tenant.starved(self, self._relay.loop)

    def go_on(self) -> None:
        """Go on: there may be room in the sandbox's budget again."""
        self._again(up=True, down=True)

    def _again(self, *, up: bool, down: bool) -> None:
        if not self._ended:
            self._guarded(lambda _: self._pump(up=up, down=down), 0)

    def _listen_in(self, *, over: bool) -> None:
        """Look at what the program has said so far, without taking it; ``over``: no more comes."""
        try:
            count = self._client.recv_into(_words, 0, socket.MSG_PEEK)
        except BlockingIOError:
            return
        said = bytes(_words[:count])
        assert self._gate is not None  # noqa: S101  (for the type checker)
        plain = self._gate is hello.server_name and not self._strict
        if plain and (said or over) and not hello.is_tls(said):
            self._open_gate()
            return
        if not said:
            if over:
                self.end("the program said nothing")
            return
        why = hello.objection(self._gate(said), self.name, strict=self._strict, over=over)
        if why:
            self.refuse(why)
        elif why is not None:
            self._open_gate()

    def _open_gate(self) -> None:
        self._gate = None
        self._settle()
        # What was said meanwhile is told by no other event.
        if self._reads:
            self._pass()
        elif self.connected:
            self._pump(up=True, down=False)

    def _pass(self) -> None:
        """Have it read, once both ends are there and the program has said whom it talks to."""
        if self.passed or not self.connected or self._gate is not None:
            return
        ends = [sock.fileno() for sock in (self._client, self._upstream) if sock is not None]
        for fd in ends:
            self._relay.loop.forget(fd)
        self.passed = True
        if why := self._relay.passing.take(self, self._tenant.id, ends):
            self.passed = False
            self.refuse(why)
