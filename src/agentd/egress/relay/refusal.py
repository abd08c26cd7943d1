"""What a program is told that dials port 80 of a name, and may not: an answer of HTTP, which any
client of that takes for what it is. A reset tells nothing there, and wget tries again for minutes;
at other ports it is what all understand. Who dials a number is no client to talk to: it is reset.
"""

import contextlib
import json
import socket
from typing import TYPE_CHECKING

from agentd.egress.relay.closing import close
from agentd.egress.relay.connection import HTTP_PORT
from agentd.egress.relay.loop import IN

if TYPE_CHECKING:
    from agentd.egress.relay.relay import Relay
    from agentd.egress.relay.tenant import Tenant
    from agentd.egress.table import EgressTable

MAX_TOLD = 32  # of a sandbox, at a time: what is more is reset
#: Seconds and bytes until a program has said what it wanted to, and has read the answer: to close
#: before would reset it.
TOLD_SECONDS, _MOST_HEARD = 5.0, 1 << 20
_PIECE = 64 << 10
_MAX_REASON = 500  # characters


class HttpRefusal:
    """Ends by itself, and with its tenant by ``end``. Made by ``tell``."""

    __slots__ = ("_client", "_heard", "_relay", "_tenant")
    passed = False  # nobody else reads it

    def __init__(self, relay: "Relay", tenant: "Tenant", client: socket.socket) -> None:
        self._relay, self._tenant, self._client = relay, tenant, client
        self._heard = 0
        tenant.told[self] = relay.loop.later(TOLD_SECONDS, self.end)
        relay.descriptors += 1
        relay.loop.watch(client.fileno(), IN, self._event)

    def end(self, _reason: str = "", *, reset: bool = False) -> None:
        """End it. Idempotent."""
        late = self._tenant.told.pop(self, None)
        if late is not None:
            late.cancel()
            self._relay.descriptors -= 1
            self._relay.loop.drop(self._client.fileno())
            close(self._client, reset=reset)

    def _event(self, _mask: int) -> None:
        """What it says is not looked at."""
        try:
            heard = len(self._client.recv(_PIECE))
        except BlockingIOError:
            return
        except OSError:
            heard = 0
        self._heard += heard
        if not heard or self._heard > _MOST_HEARD:
            self.end()


def tell(
    relay: "Relay",
    tenant: "Tenant",
    client: socket.socket,
    to: tuple[str, int],
    rule: str,
    reason: str,
    remedy: str,
) -> HttpRefusal | None:
    """Say why what was dialled is refused: ``to`` is a name, or "", and a port. ``client``, which
    does not block and is not watched, is ours from now on."""
    name, port = to
    if not name or port != HTTP_PORT or len(tenant.told) >= MAX_TOLD:
        close(client, reset=True)
        return None
    with contextlib.suppress(OSError):  # it is gone, as the next event tells
        client.send(_answer(name, rule, reason, remedy))
        client.shutdown(socket.SHUT_WR)
    return HttpRefusal(relay, tenant, client)


def remedy(table: "EgressTable", name: str, rule: str) -> str:
    """Return what would allow port 80 of a name, where rules do not."""
    if rule:
        return "leave that rule out, if it is to be allowed"
    if table.replays:
        return f"record it, with --net record:FILE,{name}:{HTTP_PORT}"
    return f"allow it with --net '{name}:{HTTP_PORT}'"


def _answer(name: str, rule: str, reason: str, remedy: str) -> bytes:
    """As the terminator answers a request that is refused, as far as it is known."""
    error = {
        "code": "denied",
        "message": f"agentd: the network refused {name}:{HTTP_PORT}: {reason[:_MAX_REASON]}",
        "host": name,
        "port": HTTP_PORT,
        "rule": rule,
        "remediation": remedy,
    }
    data = json.dumps({"error": error}).encode() + b"\n"
    head = (
        "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nCache-Control: no-store\r\n"
        "Agentd-Refused: denied\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
