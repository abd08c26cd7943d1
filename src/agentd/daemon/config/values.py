"""What a configuration's values are made of; each says what is wrong with a text that is none."""

import ipaddress
import os
import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from agentd.daemon.config.problem import nearest
from agentd.ingest import doors
from agentd.model.egress import PRIVATE, PUBLIC, cassette, check_name, check_own_name, parse_rule
from agentd.model.errors import InvalidInput
from agentd.model.mount import plain
from agentd.model.port import LOCALHOST, PortDomain
from agentd.model.units import format_size, parse_duration, parse_size

# The labels of model.isolation.IsolationLevel, which is what orders them.
Isolation = Literal["none", "process", "namespace", "userspace-kernel", "microvm"]
Scope = Literal[
    "run", "create", "files", "read", "ports", "snapshot",
    "mount", "volumes", "net", "egress", "secrets", "approve", "keys", "admin",
]  # fmt: skip
Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
_LIKE = 0.75  # how near a word is that was meant, as "pubic"
_PORTS_URL = re.compile(r"(https?)://([A-Za-z0-9.-]+)(?::([0-9]{1,5}))?/?")
_MAX_SUN_PATH = 107  # unix(7): 108 bytes with the zero
_TIMES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


class Size(int):
    """Bytes: ``"128M"`` or a number."""

    @classmethod
    def of(cls, value: object) -> "Size":
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InvalidInput("not a size", remediation='write it as "512K", "128M" or "2G"')
        return cls(parse_size(value))

    def __str__(self) -> str:
        return format_size(int(self))


class Duration(float):
    """Seconds: ``"10m"`` or a number."""

    @classmethod
    def of(cls, value: object) -> "Duration":
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise InvalidInput("not a time", remediation='write it as "250ms", "2s" or "10m"')
        return cls(parse_duration(value))

    def __str__(self) -> str:
        for size, unit in _TIMES:
            if self >= size and self % size == 0:
                return f"{int(self // size)}{unit}"
        return f"{float(self):f}".rstrip("0").rstrip(".")


class Name(str):
    """The name of a principal or an issuer, as the configuration may give it."""

    @classmethod
    def of(cls, value: object) -> "Name":
        if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.@-]{0,63}", value, re.A):
            raise InvalidInput(
                f"{value!r} is no name",
                remediation="use at most 64 letters, digits, dots, dashes, @ and underscores",
            )
        return cls(value)


class FilePath(str):
    """Absolute; ``~`` is the daemon's home."""

    @classmethod
    def of(cls, value: object) -> "FilePath":
        path = os.path.expanduser(value) if isinstance(value, str) else ""
        if not path.startswith("/") or "\0" in path:
            raise InvalidInput(f"{value!r} is no absolute path", remediation="write it as /a/b")
        return cls(plain(path))


SHIPPED_BUNDLES = ("permissive", "strict", "paranoid")


class Bundle(str):
    """A policy: one that agentd ships, by its name, or a folder of one's own."""

    @classmethod
    def of(cls, value: object) -> "Bundle":
        if value in SHIPPED_BUNDLES:
            return cls(value)
        try:
            return cls(FilePath.of(value))
        except InvalidInput:
            names = ", ".join(SHIPPED_BUNDLES)
            raise InvalidInput(
                f"{value!r} is no policy", remediation=f"name {names}, or a folder as /a/b"
            ) from None


class Sink(str):
    """A sink for audit records, beside the log itself."""

    @classmethod
    def of(cls, value: object) -> "Sink":
        text = value if isinstance(value, str) else ""
        kind, _, place = text.partition(":")
        if text not in ("stdout", "syslog") and not (
            place and kind in ("syslog", "http", "https", "otlp")
        ):
            raise InvalidInput(
                f"{value!r} is no place for audit records",
                remediation="write stdout, syslog, syslog:udp:HOST:PORT, syslog:tcp:HOST:PORT, "
                "https://... or otlp:https://...",
            )
        return cls(text)


class IndexUrl(str):
    """A package index, as pip's --index-url."""

    @classmethod
    def of(cls, value: object) -> "IndexUrl":
        parts = urlsplit(value if isinstance(value, str) else "")
        try:
            port = parts.port
        except ValueError:
            port = 0
        plain = parts.scheme in ("http", "https") and parts.hostname and port != 0
        # A secret does not belong into what agentd config show prints.
        if not plain or parts.query or parts.fragment or "@" in parts.netloc or " " in str(value):
            raise InvalidInput(
                f"{value!r} is no package index",
                remediation="write it as https://pypi.org/simple, without a user or a password",
            )
        return cls(str(value).rstrip("/"))


class DoorName(str):
    """A way in, by its name: one of agentd's own, or of an installed package."""

    @classmethod
    def of(cls, value: object) -> "DoorName":
        if value not in doors.BUILTIN and value not in doors.installed():
            raise InvalidInput(
                f"there is no door {value!r}",
                remediation=f"there are: {', '.join(doors.known())}; "
                "or install the package that has it",
            )
        return cls(value)


class Grant(str):
    """A rule of what sandboxes may reach, as model.egress spells it; "public" or "private"."""

    @classmethod
    def of(cls, value: object) -> "Grant":
        if value in (PUBLIC, PRIVATE):
            return cls(value)
        try:
            rule = parse_rule(value)  # type: ignore[arg-type]
        except InvalidInput as error:
            near = nearest(str(value), (PUBLIC, PRIVATE), _LIKE)
            if near is None:
                raise
            raise InvalidInput(error.message, remediation=f"did you mean {near!r}?") from None
        if cassette([rule.text]):
            what = f"network rule {rule.text!r} opens nothing"
            raise InvalidInput(what, remediation="leave it out")
        if rule.ask:
            raise InvalidInput(
                f"{rule.text!r} asks, and this is what may be asked for",
                remediation="leave ask out: it is for the rules of a sandbox",
            )
        return cls(rule.text)


class HostName(str):
    """As DNS has it, in lower case."""

    @classmethod
    def of(cls, value: object) -> "HostName":
        if not isinstance(value, str):
            raise InvalidInput(f"{value!r} is no name of a host", remediation='write "db.internal"')
        return cls(check_own_name(value))


class PortsUrl(str):
    """``https://ports.example.org``: below that name each port of a sandbox has a host."""

    @classmethod
    def of(cls, value: object) -> "PortsUrl":
        match = _PORTS_URL.fullmatch(value) if isinstance(value, str) else None
        if match is None or (match[3] and not 0 < int(match[3]) < 65536):
            raise InvalidInput(
                f"{value!r} is no address for ports",
                remediation='write "https://ports.example.org", or with a port and no path',
            )
        name = match[2] if match[2] == LOCALHOST else check_name(match[2])
        return cls(f"{match[1]}://{name}" + (f":{match[3]}" if match[3] else ""))

    @property
    def domain(self) -> PortDomain:
        parts = urlsplit(self)
        return PortDomain(str(parts.hostname), parts.scheme, parts.port)


class AddressAndPort(msgspec.Struct, frozen=True):
    address: str
    port: int

    @classmethod
    def of(cls, value: object) -> "AddressAndPort":
        fix = 'write it as "127.0.0.1:5432"'
        try:
            rule = parse_rule(value) if isinstance(value, str) else None
        except InvalidInput as error:  # its fix is a rule's, as every port of it
            what = error.message.removeprefix("network rule ")
            raise InvalidInput(what, remediation=fix) from None
        plain = rule is not None and rule.allow and not rule.ask
        network = rule.network if rule is not None and plain and rule.ports else None
        if rule is None or network is None or network.num_addresses > 1:
            raise InvalidInput(f"{value!r} is no address and port", remediation=fix)
        return cls(str(network.network_address), (rule.ports or (0,))[0])

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"


class Mode(int):
    """A socket's permissions, as ``"0660"``."""

    @classmethod
    def of(cls, value: object) -> "Mode":
        # A number would be read as decimal, and give other permissions than it shows.
        if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
            raise InvalidInput(f"{value!r} is no mode", remediation='write it as "0660"')
        return cls(int(value, 8))

    def __str__(self) -> str:
        return f"{int(self):04o}"


_USER = re.compile(r"\*|[0-9]{1,10}|[a-z_][a-z0-9_.-]{0,31}")


class Uid(str):
    """A number, ``self`` (the daemon's own), a user's name, or ``*`` for all others."""

    @classmethod
    def of(cls, value: object) -> "Uid":
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32:
            return cls(value)
        if isinstance(value, str) and _USER.fullmatch(value):
            return cls(value)
        raise InvalidInput(
            f"{value!r} is no user", remediation='give a uid, a user name, "self" or "*"'
        )

    def resolve(self) -> int | str:
        """Return the uid, or ``*``. Raises InvalidInput for a user that is not there."""
        if self == "*":
            return "*"
        if self == "self":
            return os.geteuid()
        if self.isascii() and self.isdigit():
            return int(self)
        import pwd

        try:
            return pwd.getpwnam(self).pw_uid
        except KeyError:
            raise InvalidInput(f"there is no user {str(self)!r}") from None


class ListenAddress(msgspec.Struct, frozen=True):
    """``path`` of a unix socket, or ``host`` and ``port``."""

    path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def of(cls, value: object) -> "ListenAddress":
        if not isinstance(value, str):
            raise _no_address(value)
        if value.startswith("unix:"):
            return cls(path=_socket_path(value))
        host, colon, port = value.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise _no_address(value)
        if host.startswith("[") and host.endswith("]"):
            return cls(host=_ip6(host[1:-1], value), port=int(port))
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", host):
            raise _no_address(value)
        return cls(host=host, port=int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it: a unix socket, or a loopback address."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # a name: whatever it is today

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _socket_path(value: str) -> str:
    if value.startswith("unix:@"):
        raise InvalidInput(
            "an abstract socket has no permissions",
            remediation="give a path: unix:/run/agentd.sock",
        )
    path = FilePath.of(value.removeprefix("unix:"))
    if len(os.fsencode(path)) > _MAX_SUN_PATH:
        raise InvalidInput(
            f"a socket's path has at most {_MAX_SUN_PATH} bytes", remediation="give a shorter one"
        )
    return str(path)


def _ip6(host: str, value: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise _no_address(value) from None


def _no_address(value: object) -> InvalidInput:
    return InvalidInput(
        f"{value!r} is no address",
        remediation="write it as unix:/path, 127.0.0.1:8443 or [::1]:8443",
    )
