"""A secret that a sandbox uses and never has: where its value goes, and where it comes from.

TOKEN@api.example.com                         kept by the daemon: agentd secret set TOKEN
TOKEN=env:VAR@api.example.com                 a variable of whoever asks
TOKEN=file:PATH@api.example.com               a file of theirs
TOKEN=command:CMD@api.example.com             what a command of theirs prints
TOKEN@one.example.com+two.example.com:8443    several hosts, at port 443 where none is named
...,header=Authorization: Bearer {}           that header is set, whatever the program says
...,places=header+target+body                 where else a placeholder is replaced

(Not to be confused with what ``model.redact`` is told to hide in records.)
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import msgspec

from agentd.model.egress import REPLAY, RESTRICTED, cassette, check_name, parse_rule
from agentd.model.errors import InvalidInput

MAX_SECRETS = 32  # of a sandbox
MAX_HOSTS = 16  # of a secret
#: Bytes. Web servers take no longer line in a request's head.
MAX_VALUE = 8 << 10
#: Of all of a sandbox: they travel in one message.
MAX_VALUES = 32 << 10
#: A shorter one could not be told from other text in an answer, and could be guessed.
MIN_VALUE = 8
#: A shorter one has no placeholder of its own length that is random enough.
MIN_REPLACED = 20
HTTPS_PORT = 443
MAX_TEXT = 8 << 10  # characters of one as the command line has it
MAX_HEADER = 512  # characters of a header that is set, without the value
#: Where a placeholder is replaced, if nothing else is said: in headers that are for credentials.
#: What else goes to a host can come back from it in another shape, or be kept there and shown.
PLACES = ("header", "target", "body")
USUAL_PLACES = ("header",)
SOURCES = ("env", "file", "command")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FORM = re.compile(
    r"(?P<name>[^=@,\s]*)(=(?P<source>.*?))?@(?P<hosts>[^@,\s]+)"
    r"(,places=(?P<places>[^@,\s]*))?(,header=(?P<header>.*))?",
    re.S,
)
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
# What frames a message, or is for one connection alone: nobody's to set.
_FRAMING = frozenset(
    (
        *("host", "content-length", "content-encoding", "transfer-encoding", "connection"),
        *("keep-alive", "te", "trailer", "upgrade", "expect", "accept-encoding", "range"),
        *("proxy-connection", "proxy-authorization"),
    )
)
_HEADER_FIX = "write it as header=Authorization: Bearer {}"
_FORMS = (
    "write it as NAME@api.example.com, NAME=env:VAR@api.example.com, =file:PATH or =command:CMD"
)
# Of the environment of every program: what these say is no secret of anybody's.
_TAKEN = frozenset(("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "PWD", "TERM"))


class SecretValue(msgspec.Struct, frozen=True):
    """A value that is never shown: neither its repr nor its str has it."""

    text: str

    def __repr__(self) -> str:
        return "SecretValue(...)"


class SecretBinding(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a secret that a sandbox uses: all but its value.

    ``hosts`` are "api.example.com" or "api.example.com:8443". ``source`` is "" where the daemon
    keeps it, else one of ``SOURCES``, or "request". ``placeholder`` is what the sandbox has in the
    variable ``name``.
    """

    name: str
    hosts: tuple[str, ...]
    header: str = ""  # "Authorization: Bearer {}"
    places: tuple[str, ...] = USUAL_PLACES
    source: str = ""
    placeholder: str = ""

    @property
    def endpoints(self) -> tuple[tuple[str, int], ...]:
        """Names and ports."""
        return tuple(_split(host) for host in self.hosts)

    def told(self) -> dict[str, Any]:
        """What policies, records and callers see of it."""
        return {"name": self.name, "hosts": list(self.hosts)}


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret as it is asked for. Without a ``value`` the daemon has one of that name: ``agentd
    secret set``. ``header`` is "Name: text {}"; ``places`` are of header, target and body.
    """

    name: str
    hosts: tuple[str, ...]
    header: str = ""
    places: tuple[str, ...] = USUAL_PLACES
    value: str | None = None

    def __repr__(self) -> str:
        return f"Secret(name={self.name!r}, hosts={self.hosts!r})"


#: Texts, and values as JSON and Python have them.
SecretOption: TypeAlias = Iterable[str | Secret] | None


class AskedSecret(msgspec.Struct, frozen=True):
    """One that was read: ``source`` is "env:VAR" and the like, or ""; ``value`` is there where it
    came along."""

    binding: SecretBinding
    source: str = ""
    value: SecretValue | None = None


def asked_secrets(secrets: SecretOption) -> tuple[AskedSecret, ...]:
    """Raises InvalidInput, naming the mistake and the fix; never with a value."""
    if isinstance(secrets, str | bytes | Mapping) or not isinstance(secrets, Iterable | None):
        raise InvalidInput(
            "secrets are no list of secrets", remediation='write them as ["NAME@api.example.com"]'
        )
    found = tuple(map(_asked, secrets or ()))
    if len(found) > MAX_SECRETS:
        raise InvalidInput(
            f"{len(found)} secrets are more than the {MAX_SECRETS} of a sandbox",
            remediation="leave some out",
        )
    check_bindings([asked.binding for asked in found])
    return found


def check_bindings(bindings: Sequence[SecretBinding]) -> None:
    """Raises InvalidInput where two of them cannot both be had."""
    names = [binding.name for binding in bindings]
    headers: set[tuple[tuple[str, int], str]] = set()
    for n, binding in enumerate(bindings):
        if binding.name in names[:n]:
            raise InvalidInput(
                f"secret {binding.name} is there twice",
                remediation=f"name all of its hosts at once: {binding.name}@one+two",
            )
        for endpoint in binding.endpoints if binding.header else ():
            key = (endpoint, binding.header.partition(":")[0].lower())
            if key in headers:
                raise InvalidInput(
                    f"two secrets set the header {key[1]} at {endpoint[0]}",
                    remediation="give each host one of them",
                )
            headers.add(key)


def opened(
    net: str, egress: tuple[str, ...], bindings: Sequence[SecretBinding]
) -> tuple[str, tuple[str, ...]]:
    """Return the network and its rules with rules for the hosts of secrets, but for those that a
    rule names anyway. Raises InvalidInput where the network is the host's."""
    if not bindings:
        return net, egress
    if net not in ("none", RESTRICTED):
        raise InvalidInput(
            f"secrets are used in a network of rules, and net is {net}",
            remediation="leave net out, or name what may be reached beside their hosts, as pypi",
        )
    if cassette(egress) == REPLAY:
        raise InvalidInput(
            f"secret {bindings[0].name} is of no use where a cassette is replayed",
            remediation=f"leave it out, and have any value in its place: -e {bindings[0].name}=x",
        )
    known = [rule for rule in map(parse_rule, egress) if rule.host]
    added = [
        f"{name}:{port}"
        for binding in bindings
        for name, port in binding.endpoints
        if not any(r.host == name and (r.ports is None or port in r.ports) for r in known)
    ]
    return RESTRICTED, (*egress, *dict.fromkeys(added))


def merged(
    kept: Sequence[SecretBinding], asked: Sequence[SecretBinding]
) -> tuple[SecretBinding, ...]:
    """Return those of a snapshot, as they are asked for anew where they are: what stands in for
    one is in the snapshot's memory, and stays. Raises InvalidInput."""
    found = {binding.name: binding for binding in kept}
    for binding in asked:
        before = found.get(binding.name)
        standing = "" if before is None else before.placeholder
        found[binding.name] = msgspec.structs.replace(binding, placeholder=standing)
    check_bindings(tuple(found.values()))
    return tuple(found.values())


def parse_secret(text: str) -> AskedSecret:
    """Read one as the command line has it. Raises InvalidInput."""
    found = _FORM.fullmatch(text) if len(text) <= MAX_TEXT else None
    if found is None:
        _refuse(text)
    name, source = found["name"], found["source"]
    if source is not None:
        kind, colon, what = source.partition(":")
        if kind not in SOURCES or not colon or not what:
            fix = f"{name}=env:VAR@..., =file:PATH@..., =command:CMD@...; never a value itself"
            _wrong(name, "has no source that is known", fix)
    if found["header"] == "":
        _wrong(name, "has a header that is none", _HEADER_FIX)
    if ",places=" in (found["header"] or ""):  # it would go to the hosts, behind the value
        _wrong(name, "has both header and places", "leave one out: header is the only place")
    places = found["places"]
    binding = SecretBinding(
        name=name,
        hosts=tuple(found["hosts"].split("+")),
        header=found["header"] or "",
        places=USUAL_PLACES if places is None else tuple(places.split("+")),
        source="" if source is None else source.partition(":")[0],
    )
    return AskedSecret(_checked(binding), source or "")


def check_value(name: str, value: str) -> SecretValue:
    """Return it as it may go into a request's head. Raises InvalidInput, without the value."""
    if not isinstance(value, str):
        _wrong(name, "has a value that is no text", "give one line of ASCII")
    if len(value) > MAX_VALUE:
        _wrong(name, f"has a value of more than {MAX_VALUE} bytes", "give what the API asks for")
    if len(value) < MIN_VALUE:
        fix = "give all of it: so few bytes could be guessed, and not be found in answers"
        _wrong(name, f"has a value of less than {MIN_VALUE} bytes", fix)
    if not _VALUE.fullmatch(value):
        fix = "give one line of ASCII, without spaces at its ends"
        _wrong(name, "has a value that no header of a request can hold", fix)
    return SecretValue(value)


def check_fits(binding: SecretBinding, value: SecretValue) -> None:
    """Raises InvalidInput where the value is too short for a placeholder of its length."""
    if len(value.text) < MIN_REPLACED and not binding.header:
        _wrong(
            binding.name,
            f"has a value of less than {MIN_REPLACED} bytes, too short for a placeholder",
            f"have it set: --secret '{binding.name}@{binding.hosts[0]},"
            "header=Authorization: Bearer {}'",
        )


def check_variables(bindings: Iterable[SecretBinding], env: Mapping[str, str]) -> None:
    """Raises InvalidInput where a variable has the name of a secret and not its placeholder."""
    for binding in bindings:
        if env.get(binding.name, binding.placeholder) != binding.placeholder:
            raise InvalidInput(
                f"{binding.name} is a variable and a secret",
                remediation=f"leave one out: the secret sets {binding.name} to its placeholder",
            )


def check_secret_name(name: str) -> str:
    """Raises InvalidInput for what is no name of a variable."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in _TAKEN:
        # What is no name of a variable may be a value, by mistake: it is not said again.
        shown = name if isinstance(name, str) and NAME.fullmatch(name) else ""
        if shown:
            why = "has the name of a variable that programs have from the sandbox"
            _wrong(shown, why, f"use another one, as MY_{shown}")
        _wrong(shown, "has no name that can be used", "use that of a variable, as API_TOKEN")
    return name


def header_parts(header: str) -> tuple[str, str]:
    """Return a header's name and its text, with "{}" in it."""
    name, _, text = header.partition(":")
    return name, text.strip()


def _asked(secret: str | Secret) -> AskedSecret:
    if isinstance(secret, str):
        return parse_secret(secret)
    if not isinstance(secret, Secret):
        raise InvalidInput(
            f"a secret is a {type(secret).__name__}", remediation=f"{_FORMS}; or a Secret"
        )
    # Python checks no types, and one text would be taken for a list of its letters.
    given: tuple[object, ...] = (secret.hosts, secret.places)
    for what in given:
        if isinstance(what, str) or not isinstance(what, Iterable):
            _wrong(_shown(str(secret.name)), "has no lists", 'write hosts=("api.example.com",)')
    if not isinstance(secret.header, str) or not isinstance(secret.value, str | None):
        _wrong(_shown(str(secret.name)), "has a header or a value that is no text", _FORMS)
    binding = SecretBinding(
        name=secret.name,
        hosts=tuple(secret.hosts),
        header=secret.header,
        places=tuple(secret.places),
        source="" if secret.value is None else "request",
    )
    binding = _checked(binding)
    value = None if secret.value is None else check_value(secret.name, secret.value)
    return AskedSecret(binding, value=value)


def _checked(binding: SecretBinding) -> SecretBinding:
    """Return it with hosts as they are spelled. Raises InvalidInput."""
    check_secret_name(binding.name)
    hosts = tuple(dict.fromkeys(_host(binding.name, host) for host in binding.hosts))
    if not hosts:
        _wrong(binding.name, "has no host", f"write it as {binding.name}@api.example.com")
    if len(hosts) > MAX_HOSTS:
        _wrong(binding.name, f"has more than {MAX_HOSTS} hosts", "leave some out")
    places = tuple(place for place in PLACES if place in binding.places)
    if unknown := [place for place in binding.places if place not in PLACES]:
        fix = f"use some of {', '.join(PLACES)}, as places=header+target"
        _wrong(binding.name, f"is to be put in {unknown[0][:32]!r}", fix)
    if binding.header:
        _check_header(binding.name, binding.header)
        if places not in ((), USUAL_PLACES):
            _wrong(
                binding.name,
                "has both header and places",
                "leave one out: header is the only place",
            )
    elif not places:
        _wrong(binding.name, "is put nowhere", "leave places out")
    return msgspec.structs.replace(binding, hosts=hosts, places=places or USUAL_PLACES)


def _check_header(secret: str, header: str) -> None:
    name, text = header_parts(header)
    long = len(header) > MAX_HEADER
    if long or not _FIELD.fullmatch(name) or not _VALUE.fullmatch(text):
        _wrong(secret, "has a header that is none", _HEADER_FIX)
    if text.count("{}") != 1:
        _wrong(secret, "has a header without one place {} for it", _HEADER_FIX)
    if name.lower() in _FRAMING or name.lower().startswith("sec-"):
        _wrong(secret, f"cannot set the header {name}, which is the connection's", _HEADER_FIX)


def _host(secret: str, host: str) -> str:
    if not isinstance(host, str) or not host:
        _wrong(secret, "has a host that is none", "write it as api.example.com")
    if "://" in host or "/" in host:
        _wrong(secret, f"has the host {host[:100]!r}", "write its name alone, as api.example.com")
    if "*" in host:
        fix = "name each host: whoever has one below it could have the secret"
        _wrong(secret, f"has the wildcard {host[:100]!r}", fix)
    name, colon, port = host.partition(":")
    if colon and not (
        port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536
    ):
        _wrong(secret, f"has the host {host[:100]!r}", "give its port as a number from 1 to 65535")
    try:
        name = check_name(name)
    except InvalidInput as error:
        what = error.message.removeprefix("network rule ")
        _wrong(secret, f"has a host that is none: {what}", error.remediation)
    return name if not colon or int(port) == HTTPS_PORT else f"{name}:{int(port)}"


def _split(host: str) -> tuple[str, int]:
    name, colon, port = host.partition(":")
    return name, int(port) if colon else HTTPS_PORT


def _refuse(text: str) -> NoReturn:
    """What is before "@" may have a value in it, by mistake, and without one all of it: that is not
    said again."""
    if len(text) > MAX_TEXT:
        _wrong(_shown(text), "cannot be read", _FORMS)
    if "@" not in text:
        _wrong("", "has no host", _FORMS)
    if not text.partition("@")[2]:
        _wrong(_shown(text), "has no host behind its @", _FORMS)
    if "," in text.partition("@")[2]:
        fix = "write ,places=header+target or ,header=Authorization: Bearer {} there; hosts have + "
        fix += "between them, and each secret is asked for by itself"
        _wrong(_shown(text), "has something behind its hosts that cannot be read", fix)
    _wrong(_shown(text), "cannot be read", _FORMS)


def _shown(text: str) -> str:
    name = re.split(r"[=@,]", text)[0]
    return name if NAME.fullmatch(name) else ""


def _wrong(name: str, what: str, fix: str) -> NoReturn:
    subject = f"secret {name}" if name else "a secret"
    raise InvalidInput(f"{subject} {what}", remediation=fix)
