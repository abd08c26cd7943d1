"""What the host's resolv.conf and hosts say, for a relay that can read no files."""

import ipaddress
import os
import socket
from typing import NamedTuple

_MAX_BYTES = 64 << 10
_MAX_NAMES = 1024
_PORT = 53


class HostNames(NamedTuple):
    """``servers`` are name servers: address, index of the interface (0 for any), port; ``hosts``
    maps names to addresses."""

    servers: tuple[tuple[str, int, int], ...]
    hosts: dict[str, list[str]]


class HostFiles:
    """Reads what resolv.conf and /etc/hosts say. Thread-compatible."""

    def __init__(self, resolv: str = "/etc/resolv.conf", hosts: str = "/etc/hosts") -> None:
        self._paths = resolv, hosts
        self._seen: list[tuple[int, int, int] | None] | None = None

    def read(self) -> HostNames:
        """Read them. A file that is not there says nothing; without a server it is the host's own,
        as resolv.conf(5) has it."""
        self._seen = self._stamps()
        resolv, hosts = map(_text, self._paths)
        return HostNames(_servers(resolv) or (("127.0.0.1", 0, _PORT),), _hosts(hosts))

    def changed(self) -> bool:
        """Return whether they are others than those that were read."""
        return self._stamps() != self._seen

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_BYTES)
            if file.read(1):  # the line that is cut would be another name
                text = text[: text.rfind(b"\n") + 1]
            return text.decode(errors="replace")
    except OSError:
        return ""


def _servers(text: str) -> tuple[tuple[str, int, int], ...]:
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            address, _, scope = words[1].partition("%")
            if _is_address(address):
                found.append((address, _index(scope), _PORT))
    return tuple(found)


def _hosts(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if not _is_address(address):
            continue
        for name in names:
            if len(found) < _MAX_NAMES or name.lower() in found:
                found.setdefault(name.lower(), []).append(address)
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _index(scope: str) -> int:
    if not scope:
        return 0
    try:
        return int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    except (OSError, ValueError):
        return 0
