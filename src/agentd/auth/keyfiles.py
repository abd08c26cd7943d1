"""Ed25519 keys (RFC 8032) as PEM files: PKCS #8 for the private one, SPKI for the public one."""

import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING

from agentd.model.errors import InvalidInput
from agentd.model.system import os_errors_as

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MAX_BYTES = 4096
_TOP = 1 << 255
_P = (1 << 255) - 19
# The y coordinates of points of small order (those that libsodium refuses, too): for such a key
# some signatures hold whatever was signed, and anybody can make them.
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset(y % _P for y in (0, 1, -1, _Y8, -_Y8))


def key_id(key: "Ed25519PublicKey") -> str:
    """``ed25519:`` and 32 hex digits of the SHA-256 of its 32 bytes."""
    return f"ed25519:{sha256(key.public_bytes_raw()).hexdigest()[:32]}"


def read_public(pem: bytes) -> "Ed25519PublicKey":
    """Raises ValueError with what is wrong."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in pem:
        raise ValueError("it holds a private key, which belongs to the signer alone")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("it is a key, and not of Ed25519")
    if int.from_bytes(key.public_bytes_raw(), "little") % _TOP % _P in _SMALL_ORDER:
        raise ValueError("it is a point of small order: anybody could sign for it")
    return key


def load_private(path: str) -> "Ed25519PrivateKey":
    """Raises InvalidInput, also where others than its owner may use the file."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read_private(path)
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise _no_key(path, "it is encrypted", "decrypt it: openssl pkey") from None
    except (ValueError, UnsupportedAlgorithm):
        raise _no_key(path, "it is no private key in PEM") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "it is not of Ed25519")
    return key


def new_pair(path: str) -> tuple[str, str]:
    """Make a new private key as ``path``, mode 0600, and its public one beside it: the key's id,
    and the public file's name. Raises InvalidInput; a file that is there already stays as it is."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    beside = f"{path.removesuffix('.pem')}.pub.pem"
    _write_new(path, private, 0o600)
    try:
        _write_new(beside, public, 0o644)
    except InvalidInput:
        os.unlink(path)
        raise
    return key_id(key.public_key()), beside


def _read_private(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            pem = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _no_key(path, error.strerror or "it cannot be read") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise _no_key(path, "others may use it", f"chmod 600 {path}, or make another")
    if len(pem) > MAX_BYTES:
        raise _no_key(path, f"it has more than {MAX_BYTES} bytes")
    return pem


def _write_new(path: str, data: bytes, mode: int) -> None:
    with os_errors_as(InvalidInput, f"cannot write {path}", "give another name"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def _no_key(
    path: str, cause: str, remediation: str = "agentd sign --new-key FILE makes one"
) -> InvalidInput:
    return InvalidInput(f"no key to sign with in {path}", cause=cause, remediation=remediation)
