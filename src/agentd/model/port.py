"""A connection to a server inside a sandbox, and addresses of it for browsers."""

import re
from collections.abc import Iterable
from typing import Protocol

import msgspec

LOCALHOST = "localhost"  # every browser knows that what is below it is this machine (RFC 6761, 6.3)
#: In front of a link's token in its path, and the cookie that it is exchanged for.
LINK_PATH = "/.agentd/"


class Port(Protocol):
    """A byte stream to a port inside a sandbox."""

    def fileno(self) -> int:
        """Readable when ``recv`` has something, or when it is over."""

    def pending(self) -> bool:
        """Return whether ``recv`` returns at once without the descriptor being readable."""

    def send_some(self, data: bytes) -> int:
        """Return how many bytes were taken, maybe none; never waits for the other end to read. The
        descriptor becomes readable when it takes more again. Raises BackendLost at its end."""

    def recv(self, timeout: float | None = None) -> bytes:
        """b"" at the end. Raises TimeoutError."""

    def half_close(self) -> None: ...
    def close(self) -> None: ...


class PortLink(msgspec.Struct, frozen=True, kw_only=True):
    """The address of a server inside, for a browser: who has it may use that port of that sandbox.

    ``expires`` is in seconds since 1970; None where it lasts as long as the sandbox's object.
    """

    url: str
    sandbox: str
    port: int
    expires: float | None = None

    def __repr__(self) -> str:
        """Leave out the address: it is a secret."""
        return f"PortLink(sandbox={self.sandbox!r}, port={self.port}, expires={self.expires})"


class LinkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """``POST /v1/sandboxes/{id}/links``: the address of a port, for a browser."""

    port: int
    ttl: str | float = "1h"


class PortDomain(msgspec.Struct, frozen=True):
    """Where the hosts of ports are: ``8080-sbx-abcdefghijkl.NAME``, as browsers reach them."""

    name: str = LOCALHOST
    scheme: str = "http"
    port: int | None = None  # None: the scheme's own

    def url(self, sandbox: str, port: int, token: str) -> str:
        at = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{host_name(sandbox, port, self.name)}{at}{LINK_PATH}{token}"


class PortHost(msgspec.Struct, frozen=True):
    """A host that stands for one port of one sandbox."""

    sandbox: str
    port: int
    domain: str


def host_name(sandbox: str, port: int, domain: str = LOCALHOST) -> str:
    return f"{port}-{sandbox}.{domain}"


def hosts_of(domains: Iterable[str]) -> re.Pattern[str]:
    """Return what matches the Host headers of ports: its groups are what ``host_name`` takes."""
    names = "|".join(map(re.escape, domains))
    host = rf"(?P<port>[1-9][0-9]{{0,4}})-(?P<sandbox>sbx-[a-z0-9]+)\.(?P<domain>{names})"
    return re.compile(rf"{host}\.?(?::[0-9]*)?", re.IGNORECASE | re.ASCII)
