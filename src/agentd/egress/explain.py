"""Would this be allowed, and by which rule? Nothing is asked of a network."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from agentd.egress.addresses import never
from agentd.egress.paths import RequestPath, read
from agentd.egress.table import EgressTable, EgressVerdict
from agentd.model.egress import THIS_HOST, check_name
from agentd.model.errors import InvalidInput
from agentd.model.typed import like

_METHOD = re.compile("[A-Z][A-Z-]*")
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ssh": 22, "git": 9418, "ftp": 21}


class ExplainedTarget(msgspec.Struct, frozen=True):
    """``private``: the rule reaches private addresses too, should the name lead to one. ``read``:
    its requests are judged one by one, and this is what is said of ``request``, "GET /v1/models".
    ``ask``: it is not allowed by a rule alone, and somebody is asked. ``cassette`` is "record"
    where what is allowed is recorded, and "replay" where a cassette answers it."""

    host: str
    port: int
    allowed: bool
    rule: str
    reason: str
    private: bool
    read: bool = False
    request: str = ""
    ask: bool = False
    cassette: str = ""


def explain(table: EgressTable, target: str) -> ExplainedTarget:
    """Explain what becomes of ``target``, a URL, HOST:PORT, or a HOST, of port 443; before a URL
    may be a method. Raises InvalidInput."""
    method, target = _words(target)
    host, port = _parts(target)
    request = ""
    try:
        address = ip_address(host)
    except ValueError:
        verdict = _of_name(table, host, port)
        if verdict.allowed and verdict.read and not verdict.ask:
            path = _path(target)
            verdict = table.of_request(host, port, method, path)
            if method == "CONNECT":
                verdict = EgressVerdict(False, "", "nobody is a proxy here", read=True)
            request = f"{method} {path.readings[0]}"
    else:
        verdict = table.of_address(address, port)
        if why := never(address):
            verdict = EgressVerdict(False, verdict.rule, why)
    allowed = verdict.allowed and not verdict.ask
    word = str(table.wire.get("cassette", "")) if allowed else ""
    said = {"host": host, "port": port, "request": request, "allowed": allowed, "cassette": word}
    return like(ExplainedTarget, verdict, **said)


def _words(target: str) -> tuple[str, str]:
    """Return the method, and the rest."""
    *methods, where = target.split() or ("",)
    method = methods[0].upper() if methods else "GET"
    if len(methods) > 1 or not _METHOD.fullmatch(method):
        raise InvalidInput(
            f"{target!r} is more than a method and a URL",
            remediation="write it as 'GET https://pypi.org/simple', %20 for a space",
        )
    return method, where


def _path(target: str) -> RequestPath:
    url = target if "://" in target else f"https://{target}"
    try:
        return read(urlsplit(url).path or "/")
    except ValueError as error:
        raise InvalidInput(
            f"{target!r} {error}", remediation="give the path as it is sent, %20 for a space"
        ) from None


def _of_name(table: EgressTable, host: str, port: int) -> EgressVerdict:
    if host == "localhost" or host.endswith(".localhost"):
        return EgressVerdict(False, "", f"{host} is the sandbox's own")
    verdict = table.of_name(check_name(host), port)
    is_denied = bool(verdict.rule) and not verdict.allowed
    if host == THIS_HOST and table.static(host) is None and not is_denied:
        # A wildcard matches its name, and does not have it: it leads nowhere.
        return EgressVerdict(False, "", f"no rule has {host}")
    return verdict


def _parts(target: str) -> tuple[str, int]:
    fix = "write it as https://pypi.org/simple, db.internal:5432 or [2001:db8::1]:443"
    url = target if "://" in target else f"https://{target}"
    try:
        parts = urlsplit(url)
        port = _PORTS.get(parts.scheme) if parts.port is None else parts.port
    except ValueError as error:
        raise InvalidInput(f"{target!r} is no target: {error}", remediation=fix) from None
    if not parts.hostname or port is None:
        what = "has no port" if parts.hostname else "has no host"
        raise InvalidInput(f"{target!r} {what}", remediation=fix)
    if not port:
        fix = "give a number from 1 to 65535"
        raise InvalidInput(f"{target!r} has the port 0, which nothing has", remediation=fix)
    return parts.hostname.removesuffix("."), port
