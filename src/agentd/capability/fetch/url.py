"""URLs as this daemon reads them: one reading, and what two parsers read differently is refused."""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, urljoin

import msgspec

from agentd.model.capability import CallFailed

MAX_URL = 8192  # characters
PORTS = {"http": 80, "https": 443}
# ASCII: else "s" is matched by U+017F, too.
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[^\[\]:@]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# What inet_aton(3) takes for a number: with such a last label, a name is an address in disguise.
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))


class Url(msgspec.Struct, frozen=True):
    """``host`` is lower-case ASCII, an IPv6 address without brackets; ``target`` is path and query.

    The fragment is dropped: it is not sent.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def text(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse(text: str) -> Url:
    """Raises CallFailed "url_refused"."""
    _check_characters(text)
    match = _URL.fullmatch(text)
    if match is None:
        raise _refused("it is no absolute http or https URL")
    if "@" in match["authority"]:
        raise _refused("it holds a user name or password", "send an Authorization header instead")
    authority = _AUTHORITY.fullmatch(match["authority"])
    if authority is None:
        raise _refused("its host or port is malformed")
    scheme = match["scheme"].lower()
    port = int(authority["port"]) if authority["port"] else PORTS[scheme]
    if not 0 < port < 1 << 16:
        raise _refused("its port is not between 1 and 65535")
    target = (match["path"] or "/") + (match["query"] or "")
    return Url(scheme, _host(authority["host"]), port, quote(target, safe=_PRINTABLE))


def join(base: Url, location: str) -> Url:
    """Return what a Location header means, seen from ``base``. Raises CallFailed "url_refused"."""
    _check_characters(location)
    if location.startswith("///"):  # a path to some, a host to browsers
        raise _refused("its host is missing")
    try:
        joined = urljoin(base.text, location)
    except ValueError:
        raise _refused("its host or port is malformed") from None
    return parse(joined)


def _check_characters(text: str) -> None:
    """Browsers read a backslash as a slash and skip tabs and newlines; others do not."""
    if len(text) > MAX_URL:
        raise _refused(f"it is over {MAX_URL} characters")
    if "\\" in text:
        raise _refused("it holds a backslash", "write it as %5C")
    if not text.isprintable() or " " in text:
        raise _refused("it holds a space or a control character", "percent-encode it")


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except AddressValueError:
            raise _refused("its host is no IPv6 address") from None
    host = (text if text.isascii() else _idna(text)).lower().removesuffix(".")
    if len(host) > 253 or not _NAME.fullmatch(host):
        raise _refused("its host is no valid name")
    if _NUMERIC.fullmatch(host.rpartition(".")[2]):
        try:
            return str(IPv4Address(host))
        except AddressValueError:
            raise _refused(
                "its host is an address in an unusual form", "write it as four decimal numbers"
            ) from None
    return host


def _idna(text: str) -> str:
    import idna

    try:
        return idna.encode(text.lower()).decode()
    except (idna.IDNAError, UnicodeError):
        raise _refused("its host is no valid internationalized name") from None


def _refused(why: str, fix: str = "") -> CallFailed:
    fix = fix or "give an absolute URL as https://example.org/path"
    return CallFailed("url_refused", f"the URL is refused: {why}", remediation=fix)
