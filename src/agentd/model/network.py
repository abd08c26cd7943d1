"""What a sandbox may reach and what it did, as callers are told; and the noun that says so."""

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec


class NetworkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``PUT /v1/sandboxes/{id}/network``: the rules that are to hold, as of SandboxBody."""

    net: str | tuple[str, ...]


class NetworkView(msgspec.Struct, frozen=True):
    """``net`` is "none", "host" or "restricted"; ``egress`` has the rules of the last, as they were
    written. ``rules`` are those by which each connection is judged, presets spelled out and those
    of the operator with them: {allow, host or network, ports (null: every one), text, private}, and
    {http: {methods (null: every one), path}} of one that is about requests. ``terminated`` are the
    hosts of its secrets, with a port where that is not 443: what goes there is read, too.
    ``own_hosts`` are the operator's, of which a rule by the whole name alone opens a port."""

    net: str
    egress: tuple[str, ...] = ()
    rules: tuple[dict[str, Any], ...] = ()
    terminated: tuple[str, ...] = ()
    own_hosts: tuple[str, ...] = ()


class ConnectionView(msgspec.Struct, frozen=True):
    """A connection that was asked for, or a name that was (``port`` is null then); or a request of
    a connection that is read, which has a ``method``, a ``path`` and its answer's ``status``.

    ``name`` is "" where a number was dialled, ``address`` where none was. ``rule`` decided, or is
    "" where none did; ``reason`` says why it was refused, or ended. ``sent`` and ``received`` are
    bytes as the sandbox sees them, ``ms`` is how long it lasted, known once it has ``ended``.
    ``asked``: it had to be asked about; while it waits for the answer it is neither ``allowed`` nor
    ``ended``."""

    n: int
    name: str
    address: str
    port: int | None
    allowed: bool
    rule: str = ""
    reason: str = ""
    ended: bool = True
    sent: int = 0
    received: int = 0
    ms: float = 0
    method: str = ""
    path: str = ""
    status: int = 0
    asked: bool = False
    alarm: bool = False  # what stands in for a secret went where that is not for


class ConnectionPage(msgspec.Struct, frozen=True):
    """The last connections, in the order in which they changed; ``next`` is what to ask ``after``.

    ``totals`` count all: ``allowed``, ``denied``, ``asked`` (about which somebody was),
    ``sent``, ``received``, and ``lost``: those that came too fast to be told. ``hosts``: how many
    were allowed, by host."""

    connections: tuple[ConnectionView, ...]
    next: int
    totals: dict[str, int]
    hosts: dict[str, int]


class Network(Protocol):
    """What a sandbox may reach, and what it did."""

    def get(self, sandbox: str) -> NetworkView:
        """Return its network, and the rules that hold. Raises NotFound."""

    def set(self, sandbox: str, net: str | Iterable[str]) -> NetworkView:
        """Let these rules hold from now on, for what is open too: connections that they do not
        allow end. It must have been made with rules; none ([]) will do. Raises NotFound,
        InvalidInput, Refused, Unsupported."""

    def cassette(self, sandbox: str) -> bytes:
        """Return the cassette of what it asked and was answered until now, where it was made with
        ``record``: the file of docs/cassettes.md. Raises NotFound, Refused."""
        ...

    def play(self, sandbox: str, cassette: bytes) -> None:
        """Answer what it asks from this cassette, from its beginning, where it was made with
        ``replay``. Raises NotFound, Refused, and InvalidInput for what is no cassette, or has hosts
        that no rule of the sandbox has."""
        ...

    def connections(self, sandbox: str, after: int = 0) -> ConnectionPage:
        """Return what it connected to and was refused, a thousand at most: all that is kept, or
        what changed after the ``next`` of an earlier answer. Raises NotFound, and Refused where its
        network has no rules."""
