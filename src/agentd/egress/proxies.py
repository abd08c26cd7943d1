"""The proxies that an environment names, as curl and Go have them: HTTPS_PROXY, HTTP_PROXY and
NO_PROXY. Each is asked to connect (CONNECT), for plain HTTP too."""

import base64
import contextlib
import socket
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from agentd.egress.destinations import Place
from agentd.linux.bounded import limit, receive
from agentd.model.errors import InvalidInput

_MAX_HEAD = 16 << 10  # bytes of an answer
_PORT = 80


class Proxy(NamedTuple):
    """``login`` is what it is told of who asks, "" for nothing."""

    place: Place
    login: str = ""

    def connect(self, sock: socket.socket, to: Place, end: float) -> None:
        """Have it connect ``sock``, which leads to it, to a place, by ``end`` of time.monotonic().
        Raises OSError."""
        lines = [f"CONNECT {to} HTTP/1.1", f"Host: {to}"]
        lines += [f"Proxy-Authorization: Basic {self.login}"] if self.login else []
        limit(sock, end)
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            # What comes after it is not ours to take.
            byte = receive(sock, 1, end)
            if not byte or len(head) > _MAX_HEAD:
                raise OSError(f"the proxy {self.place} gave no answer")
            head += byte
        status = head.split(b"\r\n", 1)[0].split(b" ")
        if status[1:2] != [b"200"]:
            said = b" ".join(status[1:]).decode("latin-1")[:80]
            raise OSError(f"the proxy {self.place} answered {said}")


class Proxies:
    """Of one environment. Immutable."""

    def __init__(self, env: Mapping[str, str]) -> None:
        """Raises InvalidInput for one that is not spoken to by plain HTTP."""
        self._by_scheme = {
            scheme: proxy
            for scheme in ("http", "https")
            if (proxy := _proxy(_value(env, f"{scheme}_proxy"), f"{scheme.upper()}_PROXY"))
        }
        self._none = [each.strip().lower() for each in _value(env, "no_proxy").split(",")]

    def of(self, scheme: str, place: Place) -> Proxy | None:
        """Return the one to ask for a place; None where it is dialled itself."""
        if any(_matches(each, place) for each in self._none if each):
            return None
        return self._by_scheme.get(scheme)


def _value(env: Mapping[str, str], name: str) -> str:
    return env.get(name.upper()) or env.get(name) or ""


def _proxy(url: str, name: str) -> Proxy | None:
    if not url:
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        host, parts = None, SplitResult("", "", "", "", "")
    if not host or parts.scheme != "http":
        raise InvalidInput(
            f"{name} names no proxy that is spoken to by HTTP",
            remediation="name it as http://HOST:PORT, or let all be reached with --net host",
        )
    login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return Proxy(Place(host, port), base64.b64encode(login.encode()).decode() * (login != ":"))


def _matches(pattern: str, place: Place) -> bool:
    """Whether an entry of NO_PROXY is of a place: ``*``, a name and those below it, ``.name`` for
    those alone, an address, a network, each with a port or without."""
    host = place.host.lower().removesuffix(".")
    with contextlib.suppress(ValueError):
        return ip_address(host) in ip_network(pattern, strict=False)
    name, colon, port = pattern.rpartition(":")
    if colon and port.isdecimal():
        if int(port) != place.port:
            return False
        pattern = name.removeprefix("[").removesuffix("]")
    if pattern in ("*", host):
        return True
    return host.endswith(f".{pattern.removeprefix('*').removeprefix('.')}")
