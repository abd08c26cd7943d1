"""The certificates that a Java machine trusts: it reads no PEM, and has a store of its own.

All of them read a JKS, whatever their own are of: the one that is there with one certificate more,
or what can be taken from it. Standard library only.
"""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

#: Where Debian, Alpine and Arch, and Red Hat, have one for all their machines.
PLACES = ("/etc/ssl/certs/java/cacerts", "/etc/pki/ca-trust/extracted/java/cacerts")
# Where machines lie, each in a folder, and where they have theirs; Java 8 has it deeper.
_HOMES = ("/usr/lib/jvm", "/usr/java", "/usr/local", "/opt", "/opt/java")
_WITHIN = ("lib/security/cacerts", "jre/lib/security/cacerts")
_MOST = 64  # of what lies in one of these
_MOST_ENTRIES = 1 << 20
_HEAD = struct.Struct(">III")
_MAGIC, _VERSION = 0xFEEDFEED, 2
_DIGEST_BYTES = 20
# What a digest begins with that whoever opens a store without its password does not look at; this
# is the password that all stores of trusted certificates have.
_SALT = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
_TRUSTED = 2
# Of PKCS #12: "a certificate of X.509", and the lengths of the two that hold it.
_X509 = re.compile(rb"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x09\x16\x01\xa0\x82..\x04\x82(..)", re.S)
_PEM, _PEM_END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def places(names: Callable[[str], list[str]]) -> Iterator[str]:
    """Yield each path that may be one; ``names`` lists a folder, and nothing where it is none."""
    yield from PLACES
    for home in _HOMES:
        for name in sorted(names(home))[:_MOST]:
            yield from (f"{home}/{name}/{within}" for within in _WITHIN)


def store(own: bytes, system: bytes, authority: bytes) -> bytes:
    """Return a JKS of what the store ``own`` has, or the PEM ``system`` where nothing can be taken
    from it, and of ``authority``, PEM too; nothing where neither has any."""
    (ours,) = _of_pem(authority)
    magic, version, count = _HEAD.unpack_from(own.ljust(_HEAD.size))
    if (magic, version) == (_MAGIC, _VERSION) and count < _MOST_ENTRIES:
        entries = own[_HEAD.size : -_DIGEST_BYTES]
    else:
        found = _of_pkcs12(own) or _of_pem(system)
        count, entries = len(found), b"".join(_entry(f"{n}", der) for n, der in enumerate(found))
    if not count:
        return b""
    made = _HEAD.pack(_MAGIC, _VERSION, count + 1) + _entry("agentd", ours) + entries
    return made + hashlib.sha1(_SALT + made, usedforsecurity=False).digest()


def _entry(alias: str, der: bytes) -> bytes:
    """Of a certificate that is trusted, and no date."""
    head = struct.pack(">I", _TRUSTED) + _text(alias) + bytes(8)
    return head + _text("X.509") + struct.pack(">I", len(der)) + der


def _text(ascii_: str) -> bytes:
    return struct.pack(">H", len(ascii_)) + ascii_.encode()


# Both files may be a hostile image's: each byte is looked at once, and is in one certificate.


def _of_pkcs12(own: bytes) -> list[bytes]:
    """Those of a store that is not encrypted, as Java's own are."""
    found, end = [], 0
    while match := _X509.search(own, end):
        end = match.end() + int.from_bytes(match[1])
        found.append(own[match.end() : end])
    return found


def _of_pem(text: bytes) -> list[bytes]:
    found = []
    for piece in text.split(_PEM)[1:]:
        inner, end, _ = piece.partition(_PEM_END)
        if end:
            with suppress(binascii.Error):
                found.append(base64.b64decode(inner))
    return found
