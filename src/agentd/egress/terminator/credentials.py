"""Secrets put where their placeholders are, and placeholders where secrets come back. Pure.

A secret is put into headers that are for credentials, or where its binding says; what else goes to
a host may come back from it in another shape (a model repeats what it is told, letter by letter),
or be kept there for others to read.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes

import msgspec

from agentd.egress.terminator.frames import ClientFrames
from agentd.egress.terminator.host_frames import HostFrames
from agentd.egress.terminator.replacing import Put, Replacer
from agentd.egress.terminator.spellings import in_base64, spellings
from agentd.model import typed
from agentd.model.secret import SecretBinding, SecretValue, header_parts

Headers = Sequence[tuple[bytes, bytes]]
# Of a word of a header's name, its end: X-Api-Key, apikey, X-AuthToken.
_FOR_CREDENTIALS = (
    *(b"auth", b"authorization", b"authentication", b"key", b"token", b"secret"),
    *(b"credential", b"credentials", b"password", b"passwd"),
)
# Such a header is kept with what it comes with, or names it: X-Amz-Meta-Token, Idempotency-Key.
_FOR_OTHERS = frozenset((b"meta", b"idempotency", b"cache", b"surrogate", b"sec", b"trace"))
_EXTENSIONS = b"sec-websocket-extensions"
# A part of an answer may be a part of a secret; a frame that is compressed cannot be looked at, nor
# text in an odd character set.
_DROPPED = (*(b"accept-encoding", b"accept-charset", b"range", b"if-range"), _EXTENSIONS)
_NO_BODY, _SWITCHING = (204, 304), 101
#: Of a connection: Basic credentials that were sent, so that they are known when they come back.
_MAX_SENT = 32
# What stands for itself within a text of JSON, XML, HTML, or YAML; and in a form.
_PLAIN = re.compile(rb"[A-Za-z0-9 !#$()*+,./:;=?@\[\]^_`{|}~-]*")
_PLAIN_IN_FORM = re.compile(rb"[A-Za-z0-9._~-]*")


class CredentialRefusal(Exception):
    """A request or an answer that goes no further. ``alarm``: somebody should be told. No field has
    a value in it."""

    def __init__(
        self,
        code: str,
        message: str,
        remediation: str = "",
        secret: str = "",
        *,
        alarm: bool = False,
        status: int = 403,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remediation = remediation
        self.secret = secret
        self.alarm = alarm
        self.status = status


class BodyFilter(Protocol):
    """Looks at a body as it goes by. Both raise CredentialRefusal."""

    def feed(self, data: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class HeldSecret(msgspec.Struct, frozen=True):
    """A secret with its value."""

    binding: SecretBinding
    value: SecretValue

    @property
    def name(self) -> str:
        return self.binding.name

    @property
    def placeholder(self) -> bytes:
        return self.binding.placeholder.encode()

    @property
    def text(self) -> bytes:
        return self.value.text.encode()

    def masked(self, found: bytes) -> bytes:
        """Return what stands in an answer in place of ``found``: as long as that."""
        return _masking(self.placeholder)(found)


class Credentials:
    """Holds all secrets of one sandbox."""

    def __init__(self, secrets: Sequence[HeldSecret]) -> None:
        """Raises ValueError for a value or a placeholder that no request can hold."""
        for each in secrets:
            if not (each.placeholder.isalnum() or re.fullmatch(rb"[\w.-]+", each.placeholder)):
                raise ValueError(f"secret {each.name} has no placeholder")
            if not re.fullmatch(rb"[\x20-\x7e]+", each.text):
                raise ValueError(f"secret {each.name} has a value that no header can hold")
        self._secrets = tuple(secrets)

    @classmethod
    def of(
        cls, bindings: Sequence[SecretBinding], values: Mapping[str, SecretValue]
    ) -> "Credentials":
        """Return those that have a value. Raises ValueError."""
        held = [HeldSecret(b, values[b.name]) for b in bindings if b.name in values]
        return cls(held)

    def for_host(self, name: str, port: int, *, tls: bool = True) -> "HostCredentials | None":
        """Return what is to be done with a connection to it; None where there is no secret at all.
        Without ``tls`` no secret is for it: it could be read on its way."""
        if not self._secrets:
            return None
        there = (name.lower(), port)
        own = [each for each in self._secrets if tls and there in each.binding.endpoints]
        return HostCredentials(name, own, [each for each in self._secrets if each not in own])


class HostCredentials:
    """One connection's requests and answers, in turn. Not thread-safe."""

    def __init__(self, host: str, own: Sequence[HeldSecret], others: Sequence[HeldSecret]) -> None:
        self._host = host
        self._own = own
        self._others = others
        self._sent: dict[bytes, bytes] = {}  # Basic credentials, and what the sandbox had said
        self._method = b""
        self._form = False
        self._encoded = False
        self._switched = False

    # --- requests ---

    def head(
        self, method: bytes, target: bytes, headers: Headers
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Return the target and the headers that go on. Raises CredentialRefusal."""
        self._method = method.upper()
        content = _all(headers, b"content-type").lower()
        self._form = b"x-www-form-urlencoded" in content
        self._encoded = _all(headers, b"content-encoding").strip().lower() not in (b"", b"identity")
        self._refuse_elsewhere(target)
        target = self._put_in_target(target)
        found = [(name, self._header(name, value)) for name, value in headers]
        if not self._own:
            return target, [pair for pair in found if pair[0].lower() != _EXTENSIONS]
        if self._method == b"TRACE":
            raise CredentialRefusal(
                "credential_method", f"TRACE is not let through to {self._host}: it is an echo"
            )
        for each in self._own:
            if each.binding.header:
                found = _with_header(found, each)
        found = [pair for pair in found if pair[0].lower() not in _DROPPED]
        return target, [*found, (b"Accept-Encoding", b"identity")]

    def body(self) -> BodyFilter:
        """Return what looks at the body of the request whose head was the last."""
        texts: dict[bytes, Put] = {each.placeholder: self._elsewhere(each) for each in self._others}
        if not self._encoded:
            own = [each for each in self._own if "body" in each.binding.places]
            texts |= {each.placeholder: self._put_in_body(each) for each in own}
        return Replacer(texts)

    def tunnel(self) -> BodyFilter:
        """Return what looks at what the program says over a WebSocket: as at a body, frame by
        frame."""
        strays = Replacer({each.placeholder: self._elsewhere(each) for each in self._others})
        own = [each for each in self._own if "body" in each.binding.places]

        def put(payload: bytes) -> bytes:
            for each in own:
                if each.placeholder in payload:
                    payload = payload.replace(each.placeholder, self._put_in_body(each)(b""))
            return payload

        return ClientFrames(strays.feed, put)

    def _header(self, name: bytes, value: bytes) -> bytes:
        basic = self._basic(value) if name.lower() == b"authorization" else None
        if basic is not None:
            replaced = self._put_in_header(name, basic)
            if replaced == basic:
                return value
            sent = base64.b64encode(replaced)
            if len(self._sent) >= _MAX_SENT and sent not in self._sent:
                raise CredentialRefusal(
                    "credential_basic",
                    f"more than {_MAX_SENT} Basic credentials with a secret over one connection",
                    "open another",
                )
            self._sent[sent] = base64.b64encode(basic)
            return b"Basic " + sent
        return self._put_in_header(name, value)

    def _put_in_header(self, name: bytes, value: bytes) -> bytes:
        self._refuse_elsewhere(value)
        for each in self._own:
            if each.binding.header or each.placeholder not in value:
                continue
            if "header" not in each.binding.places or not is_for_credentials(name):
                raise self._not_here(each, f"the header {name.decode('latin-1')[:64]}", "header")
            value = value.replace(each.placeholder, each.text)
        return value

    def _basic(self, value: bytes) -> bytes | None:
        """Return what Basic credentials say, "user:password"; None where these are others."""
        scheme, _, text = value.strip().partition(b" ")
        if scheme.lower() != b"basic":
            return None
        try:
            return base64.b64decode(text.strip(), validate=True)
        except binascii.Error:
            return None

    def _put_in_target(self, target: bytes) -> bytes:
        for each in self._own:
            if each.binding.header or each.placeholder not in target:
                continue
            if "target" not in each.binding.places:
                raise self._not_here(each, "the request's target", "target")
            target = target.replace(each.placeholder, quote(each.text, safe=":@").encode())
        return target

    def _put_in_body(self, each: HeldSecret) -> Put:
        def put(_: bytes) -> bytes:
            plain = _PLAIN_IN_FORM if self._form else _PLAIN
            if not plain.fullmatch(each.text) or len(each.text) != len(each.placeholder):
                raise CredentialRefusal(
                    "credential_unfit",
                    f"secret {each.name} has characters that this body would have to quote",
                    f"have it put into a header: {each.name}@{self._host},header=Name: {{}}",
                    each.name,
                )
            return each.text

        return put

    def _not_here(self, each: HeldSecret, where: str, place: str) -> CredentialRefusal:
        fix = f"--secret '{each.name}@{self._host},places={place}'"
        if place in each.binding.places:
            fix = f"--secret '{each.name}@{self._host},header=NAME: {{}}'"
        return CredentialRefusal(
            "credential_place",
            f"secret {each.name} is not put into {where}",
            f"send it in a header that is for credentials, as Authorization; or {fix}",
            each.name,
        )

    def _refuse_elsewhere(self, text: bytes) -> None:
        if not self._others:
            return
        plain = unquote_to_bytes(text) if b"%" in text else text
        for each in self._others:
            if each.placeholder in text or each.placeholder in plain:
                self._elsewhere(each)(b"")

    def _elsewhere(self, each: HeldSecret) -> Put:
        def refuse(_: bytes) -> bytes:
            hosts = ", ".join(each.binding.hosts)
            raise CredentialRefusal(
                "credential_elsewhere",
                f"secret {each.name} is not for {self._host}: it is used at {hosts}",
                f"have {self._host} added to its hosts, if it should be",
                each.name,
                alarm=True,
            )

        return refuse

    # --- answers ---

    def answer_head(self, status: int, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Return the headers without a secret in them. Raises CredentialRefusal for an answer whose
        body cannot be looked at."""
        self._switched = status == _SWITCHING
        if not self._own:
            return list(headers)
        encoding = _all(headers, b"content-encoding").strip().lower() or b"identity"
        transfer = _all(headers, b"transfer-encoding").strip().lower() or b"chunked"
        empty = self._method == b"HEAD" or status in _NO_BODY or status < 200
        if not empty and (encoding != b"identity" or transfer != b"chunked" or status == 206):
            raise CredentialRefusal(
                "credential_encoded",
                f"the answer of {self._host} is encoded or a part of one, so that a secret in it "
                "could not be found",
                "ask another host for it, one that no secret is for",
                status=502,
            )
        texts = self._returning()
        return [(_replaced(texts, name), _replaced(texts, value)) for name, value in headers]

    def answer_body(self) -> BodyFilter:
        """Return what overwrites secrets in the answer whose head was the last, in the frames that
        follow a 101 too. What it is given and what it returns are of one length. When something
        comes tells nothing of a secret: else a program would try, in what a host says back, with
        what its secret begins."""
        texts = self._returning()
        return HostFrames(texts) if self._switched and texts else Replacer(texts, steady=True)

    def _returning(self) -> dict[bytes, Put]:
        texts: dict[bytes, Put] = {}
        for each in self._own:
            for spelling in spellings(each.text):
                texts[spelling] = each.masked
            for spelling in in_base64(each.text):
                texts[spelling] = _masking(b"")
        for sent, said in self._sent.items():
            texts[sent] = _masking(said)
        return texts


def _masking(said: bytes) -> Put:
    return lambda found: said[: len(found)].ljust(len(found), b"*")


def is_for_credentials(name: bytes) -> bool:
    """Return whether a header of that name carries one."""
    words = re.split(b"[-_]", name.lower())
    return any(word.endswith(_FOR_CREDENTIALS) for word in words) and not _FOR_OTHERS & set(words)


def _replaced(texts: dict[bytes, Put], value: bytes) -> bytes:
    replacer = Replacer(texts)
    return replacer.feed(value) + replacer.finish()


def _all(headers: Headers, name: bytes) -> bytes:
    return b",".join(value for each, value in headers if each.lower() == name)


def _with_header(
    headers: Sequence[tuple[bytes, bytes]], each: HeldSecret
) -> list[tuple[bytes, bytes]]:
    """Set its header, in place of all that servers take for the same: some read "_" as "-"."""
    name, text = header_parts(each.binding.header)
    same = name.lower().replace("_", "-").encode()
    kept = [pair for pair in headers if pair[0].lower().replace(b"_", b"-") != same]
    return [*kept, (name.encode(), text.replace("{}", each.value.text).encode())]


def convert_secrets(message: Sequence[Any]) -> Credentials:
    """Return those of a message of ``pack_secrets``. Raises ValueError."""
    return Credentials(typed.convert(list(message), list[HeldSecret]))


def pack_secrets(
    bindings: Sequence[SecretBinding], values: Mapping[str, SecretValue]
) -> list[dict[str, Any]]:
    """Return those that have a value as JSON, for ``convert_secrets``."""
    held = [HeldSecret(b, values[b.name]) for b in bindings if b.name in values]
    return list(msgspec.to_builtins(held))
