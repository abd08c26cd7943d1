"""The grammar of what a sandbox may reach: a rule is a text, and has one canonical spelling.

pypi                     a preset, a versioned file of rules
api.example.com          ports 443 and 80
*.example.com            any depth below, never the name itself
example.com:5432         that port               example.com:*   every port
host.agentd.internal:5432  that port of 127.0.0.1 of the machine itself
10.1.2.3:5432            an address              10.0.0.0/8:*    a network
[2001:db8::1]:443        of IPv6                 [2001:db8::/32]:*
!gist.github.com         never, at any port; wins over all others
GET|HEAD example.com/v1/*    these requests alone: their connections are read (``http_match``)
ask api.example.com      somebody is asked about each host and port of it; what else allows wins
ask public               of all that is public
learn                    all that is public, to see what is needed
record, replay           what is asked is written to a cassette, or answered from one (``cassette``)
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import NoReturn, TypeAlias

import msgspec

from agentd.model import http_match
from agentd.model.errors import InvalidInput
from agentd.model.hostnames import is_registry, punycode

MAX_RULES = 256
MAX_TEXT = 16 << 10  # characters of a sandbox's rules
MAX_NAME = 253  # RFC 1035, without the dot at its end
USUAL_PORTS = (443, 80)
NETS = ("none", "host")
RESTRICTED = "restricted"  # to what its rules allow
_NET_FIX = "use none, host, or rules: pypi,api.example.com,10.1.2.3:5432"
#: Rules are a text with commas, or a list of texts, which may be empty: then nothing is reached.
Net: TypeAlias = str | Iterable[str] | None
#: Each is a file in ``egress/presets``.
PRESETS = (
    *("crates", "debian", "dockerhub", "ghcr", "github", "github-read", "go", "huggingface"),
    *("npm", "pypi"),
)
#: What an operator may write in place of a rule: every name and address, as far as it is public;
#: and what reaches private ones: hosts by their whole name, and networks that are private.
PUBLIC, PRIVATE = "public", "private"
#: The rule that allows every public name and address, so that what is needed can be seen.
LEARN = "learn"
#: What is asked is recorded; or answered from what was, and nothing is dialled.
RECORD, REPLAY = "record", "replay"
#: Before a rule that allows nothing by itself: the daemon is asked at the first connection.
ASK = "ask"
ASK_PUBLIC = f"{ASK} {PUBLIC}"
#: The machine itself: what listens on its loopback, a port a rule. No wildcard has it, and of an
#: operator's rules only one of that very port.
THIS_HOST = "host.agentd.internal"
#: Networks that are no rules, and words that have another meaning where rules are written.
RESERVED = ("none", "host", "restricted", PUBLIC, PRIVATE)

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PRESET = re.compile(r"[a-z][a-z0-9-]{0,31}")
# What inet_aton(3) takes for an address: its last label is a number.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_FEWER = "use a wildcard, as *.example.com, or a network, as 10.0.0.0/8:443"
_FORMS = "write a preset, a name, *.name, name:port, name/path, address:port or network:port"

Network = IPv4Network | IPv6Network


class EgressRule(msgspec.Struct, frozen=True):
    """One of ``preset``, ``host`` and ``network`` is there, but for ``RECORD`` and ``REPLAY``,
    which say what becomes of what the others allow. ``ports`` None is every port. With a ``path``,
    of a ``host`` alone, it is about requests: ``methods`` None is every method. ``ask``: what it
    allows is allowed once somebody was asked."""

    text: str  # canonical
    allow: bool = True
    preset: str = ""
    host: str = ""  # "api.example.com" or "*.example.com"; "*" of LEARN and ASK_PUBLIC alone
    network: Network | None = None
    ports: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    path: str = ""
    ask: bool = False


class StaticHost(msgspec.Struct, frozen=True):
    """A name that the operator answers: connections to it go to ``address`` and ``port``, whatever
    address that is."""

    name: str
    address: str
    port: int


class EgressBounds(msgspec.Struct, frozen=True):
    """What an operator lets callers be granted: rules, ``PUBLIC``, ``PRIVATE`` and rules that
    forbid. ``allow`` None is all, as for oneself. ``net_bytes`` and ``net_rate`` are as in Limits.
    ``ca_file`` has certificates that hosts whose connections are read may have besides those that
    the system trusts."""

    allow: tuple[str, ...] | None = None
    hosts: tuple[StaticHost, ...] = ()
    net_bytes: int | None = None
    net_rate: int | None = None
    ca_file: str = ""


def network(net: Net) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a sandbox's network, and the rules of one that is restricted. Raises
    InvalidInput."""
    if net is None or net in NETS:
        return (net if isinstance(net, str) else "none"), ()
    if isinstance(net, str) and not net.strip():
        raise InvalidInput("network '' says nothing", remediation=_NET_FIX)
    texts = [text.strip() for text in net.split(",")] if isinstance(net, str) else net
    rules = parse_rules(texts)
    _check_cassette(rules)
    return RESTRICTED, tuple(rule.text for rule in rules)


def cassette(egress: Iterable[str]) -> str:
    """Return ``RECORD`` or ``REPLAY``, where one is among these rules; else ""."""
    return next((text for text in egress if text in (RECORD, REPLAY)), "")


def _check_cassette(rules: Iterable[EgressRule]) -> None:
    """Raises InvalidInput for what can neither be recorded nor replayed."""
    word = cassette(rule.text for rule in rules)
    for rule in rules if word else ():
        if rule.text in (RECORD, REPLAY) and rule.text != word:
            _wrong(rule.text, f"cannot stand beside {word}", "leave one of them out")
        if rule.allow and (rule.network is not None or rule.host == "*"):
            what = "recorded" if word == RECORD else "replayed"
            _wrong(rule.text, f"cannot be {what}", "name the hosts that are meant")


def rules_of(net: Net) -> tuple[str, ...]:
    """Return the rules of a network that is to be restricted. Raises InvalidInput."""
    kind, rules = network(net)
    if kind != RESTRICTED:
        raise InvalidInput(
            f"network {kind} is no rules", remediation='give rules, as ["pypi"]; [] is none at all'
        )
    return rules


def parse_rules(texts: Iterable[str]) -> tuple[EgressRule, ...]:
    """Return each rule once, in the order of their first. Raises InvalidInput."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InvalidInput(
            "network rules are no list of texts", remediation='write them as ["pypi"]'
        )
    found: dict[str, EgressRule] = {}
    for text in texts:
        rule = parse_rule(text)
        found.setdefault(rule.text, rule)
        if len(found) > MAX_RULES:
            raise InvalidInput(f"more than {MAX_RULES} network rules", remediation=_FEWER)
    if sum(map(len, found)) > MAX_TEXT:
        raise InvalidInput(f"network rules of more than {MAX_TEXT} characters", remediation=_FEWER)
    return tuple(found.values())


def parse_rule(text: str) -> EgressRule:
    """Raises InvalidInput, naming the mistake and the fix."""
    if not isinstance(text, str):
        raise InvalidInput(f"network rule {text!r} is no text", remediation=_FORMS)
    allow, rest = not text.strip().startswith("!"), text.strip().removeprefix("!").strip()
    if not rest:
        _wrong(text, "says nothing", _FORMS)
    word, _, asked = rest.partition(" ")
    if word.lower() == ASK and asked:
        return _asking(text, asked.strip(), allow)
    word = rest.partition(":")[0].lower()
    if word in (RECORD, REPLAY) and ":" in rest:
        _wrong(text, "has a file, which is for agentd run and Sandbox.create", f"say {word}")
    if _URL.match(rest):
        _wrong(text, "is a URL", f"write its host, as {_of_url(rest)}")
    if "@" in rest.partition("/")[0]:
        host = rest.rpartition("@")[2] or "api.example.com"
        _wrong(text, "has an @", f"write the host, as {host}; a secret is for --secret")
    sign = "" if allow else "!"
    if " " in rest or _has_path(rest):
        return _of_requests(text, sign, rest)
    rest = rest.lower()
    _check_length(text, rest)
    if (name := rest.removeprefix("preset:")) != rest or _PRESET.fullmatch(rest):
        return _preset(text, name, sign)
    where, ports = _ports(text, rest, allow)
    said = _said(rest, ports)
    if where.startswith("[") or ":" in where or "/" in where or _is_number(where):
        network = _network(text, where)
        if allow and not said:
            fix = f"write it as {_spelled(network)}:443, or :* for every port"
            _wrong(text, "has no port", fix)
        return EgressRule(
            sign + _with(_spelled(network), said), allow, network=network, ports=ports
        )
    _check_host(text, where)
    if where == THIS_HOST and allow and said in ("", "*"):
        what = "names every port of this machine" if said else "has no port"
        _wrong(text, what, f"name each that is meant, as {THIS_HOST}:5432")
    return EgressRule(sign + _with(where, said), allow, host=where, ports=ports)


def asks(rule: str) -> bool:
    """Return whether a rule, as it is spelled canonically, has somebody asked."""
    return rule.startswith(f"{ASK} ")


def _asking(text: str, rest: str, allow: bool) -> EgressRule:
    """Return a rule behind ``ASK``, which may not be about what is never allowed."""
    if allow and rest.lower() == PUBLIC:
        return EgressRule(ASK_PUBLIC, host="*", ask=True)
    rule = parse_rule(rest)
    if not (allow and rule.allow):
        fix = f"write !{rule.text.removeprefix('!')}, or leave ! out"
        _wrong(text, "asks about what is never allowed", fix)
    if rule.path:
        _wrong(text, "asks about requests", f"ask about the host, as ask {rule.host}")
    if rule.ask or rule.text == LEARN:
        _wrong(text, "asks about everything", f"write {ASK_PUBLIC}")
    return msgspec.structs.replace(rule, text=f"{ASK} {rule.text}", ask=True)


def _has_path(rest: str) -> bool:
    """Of a host's, and not what follows a network's address."""
    before, slash, _ = rest.partition("/")
    return bool(slash) and not before.startswith("[") and not _is_number(before)


def _of_requests(text: str, sign: str, rest: str) -> EgressRule:
    def wrong(what: str, fix: str) -> NoReturn:
        _wrong(text[:200], what, fix)

    before, _, place = rest.rpartition(" ") if "/" not in rest else _words(rest)
    place, slash, path = place.partition("/")
    place = place.lower()
    _check_length(text, place)
    methods = http_match.methods(before.strip(), wrong)
    path = http_match.path(slash + path, wrong) if slash else http_match.EVERY_PATH
    if place.startswith("preset:") or (_PRESET.fullmatch(place) and place != "localhost"):
        wrong("has requests of a preset", "name its hosts, as read api.example.com")
    where, ports = _ports(text, place, allow=not sign)
    if where.startswith("[") or ":" in where or _is_number(where):
        wrong("has requests of an address", "name a host: [[egress.host]] gives one")
    _check_host(text, where)
    spelled = http_match.spelled(methods) + _with(where, _said(place, ports)) + path
    return EgressRule(sign + spelled, not sign, host=where, ports=ports, methods=methods, path=path)


def _words(rest: str) -> tuple[str, str, str]:
    """Methods, nothing, and the rest: a path has no spaces that count."""
    head, slash, path = rest.partition("/")
    before, space, host = head.rstrip(" ").rpartition(" ")
    return before, space, host + slash + path


def _check_length(text: str, place: str) -> None:
    if len(place) > MAX_NAME + 8:
        _wrong(text[:64] + "...", "is too long", f"a name has at most {MAX_NAME} characters")


def _said(place: str, ports: tuple[int, ...] | None) -> str:
    return "" if ":" not in _after_bracket(place) else "*" if ports is None else str(ports[0])


_MAPPED = IPv6Network("::ffff:0:0/96")


def _preset(text: str, name: str, sign: str) -> EgressRule:
    if name == "localhost":
        _wrong(text, "is the sandbox's own", "leave it out: it is always there")
    if name == LEARN and not sign:
        return EgressRule(LEARN, host="*")
    if name in (RECORD, REPLAY) and not sign:
        return EgressRule(name)
    if name in NETS:
        _wrong(text, "is a network of its own", f"ask for {name} alone, or for rules, as pypi")
    if name == ASK:
        _wrong(text, "says not what about", f"write {ASK} api.example.com, or {ASK_PUBLIC}")
    if name == PUBLIC:
        _wrong(text, "is no rule", f"write {ASK_PUBLIC}, or name what is needed, as pypi")
    if name in (*RESERVED, LEARN, RECORD, REPLAY):
        _wrong(text, "is no rule", "name what is needed, as pypi or api.example.com")
    if not _PRESET.fullmatch(name):
        _wrong(text, "is no name of a preset", "write it as preset:pypi")
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        fix = f"{meant}use one of {', '.join(PRESETS)}; or a host, as {name}.example.com"
        _wrong(text, "is no preset", fix)
    return EgressRule(sign + name, not sign, preset=name)


def _after_bracket(rest: str) -> str:
    return rest.rpartition("]")[2] if rest.startswith("[") else rest


def _ports(text: str, rest: str, allow: bool) -> tuple[str, tuple[int, ...] | None]:
    """Split it; of a rule that denies every port is meant where none is named."""
    tail = _after_bracket(rest)
    if tail.count(":") > 1:
        _wrong(text, "has more than one colon", "write IPv6 in brackets, as [2001:db8::1]:443")
    head, colon, port = tail.partition(":")
    where = rest[: len(rest) - len(tail)] + head
    if not colon:
        return where, USUAL_PORTS if allow else None
    if port == "*":
        return where, None
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or not 1 <= int(port) <= 65535:
        _wrong(text, f"has the port {port!r}", "give a number from 1 to 65535, or * for every port")
    return where, (int(port),)


def _is_number(where: str) -> bool:
    return _NUMBER.fullmatch(where.rpartition(".")[2]) is not None


def _network(text: str, where: str) -> Network:
    bracketed = where.startswith("[") and where.endswith("]")
    inner = where[1:-1] if bracketed else where
    if (":" in inner) != bracketed or "%" in inner:
        _wrong(text, "is no address", "write IPv6 in brackets, as [2001:db8::1]:443")
    try:
        network = ip_network(inner, strict=False)
    except ValueError:
        fix = "write four decimal numbers, as 10.1.2.3:443; or a network, as 10.0.0.0/8:443"
        _wrong(text, "is no address", fix)
    address, _, prefix = inner.partition("/")
    if prefix not in ("", str(network.prefixlen)):  # as a mask: 10.0.0.0/255.0.0.0
        _wrong(text, "has a mask", f"write {_spelled(network)}")
    if int(ip_address(address)) != int(network.network_address):
        _wrong(text, "has bits beyond its prefix", f"write {_spelled(network)}")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        plain = IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
        _wrong(text, "is IPv4 in IPv6", f"write {_spelled(plain)}")
    return network


def _spelled(network: Network) -> str:
    single = network.prefixlen == network.max_prefixlen
    text = str(network.network_address) if single else str(network)
    return f"[{text}]" if network.version == 6 else text


def _with(where: str, port: str) -> str:
    return f"{where}:{port}" if port else where


def check_name(name: str) -> str:
    """Return a host's name as DNS has it, without a wildcard. Raises InvalidInput."""
    low = name.lower()
    if low.startswith("*") or _is_number(low):
        _wrong(name, "is no name of a host", "write it as db.internal")
    _check_host(name, low)
    return low


def check_own_name(name: str) -> str:
    """``check_name`` of one that an operator answers."""
    if (low := check_name(name)) == THIS_HOST:
        _wrong(name, "is this machine already", f"allow a port of it, as {THIS_HOST}:5432")
    return low


def _check_host(text: str, host: str) -> None:
    name = host.removeprefix("*.")
    if host in ("*", "*."):
        _wrong(text, "would be everything", "name what is needed, or use --net host")
    if "*" in name:
        _wrong(text, "has a wildcard in its middle", "write *. once, at the front")
    if not name.isascii():
        _wrong(text, "is not ASCII", f"write it as {punycode(host)}")
    if name.endswith("."):
        whole = host.rstrip(".")
        _wrong(text, "ends with a dot", f"write {whole}" if whole else _FORMS)
    if "localhost" in (name, name.rpartition(".")[2]):
        _wrong(text, "is the sandbox's own", "leave it out: it is always there")
    if "," in name:
        _wrong(text, "is more than one", "write each as a text of its own")
    if len(name) > MAX_NAME or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        _wrong(text, "is no name of a host", _FORMS)
    labels = name.split(".")
    if host != name and (len(labels) < 2 or is_registry(labels)):
        _wrong(text, "is the wildcard of a registry", "name the domain too, as *.example.com")


def _of_url(text: str) -> str:
    return re.split(r"[/?#]", text.partition("://")[2])[0].rpartition("@")[2] or "example.com"


def _wrong(text: str, what: str, fix: str) -> NoReturn:
    raise InvalidInput(f"network rule {text!r} {what}", remediation=fix)
