"""The Ed25519 key that signs receipts; its owner alone reads it."""

import contextlib
import os
import stat
from hashlib import sha256
from typing import TYPE_CHECKING, Union

from agentd.audit.errors import AuditError, ReceiptInvalid
from agentd.audit.files import sync_directory
from agentd.model.system import os_errors_as

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PublicKey = Union[bytes, "Ed25519PublicKey"]  # PEM, or the object
_MAX_KEY = 16 << 10
PUBLIC = ".pub"


class KeyPair:
    """``id`` is the SHA-256 of the public key in DER (SubjectPublicKeyInfo), hexadecimal."""

    def __init__(self, private: "Ed25519PrivateKey") -> None:
        self._private = private
        self.public = private.public_key()
        self.id = key_id(self.public)

    @classmethod
    def load_or_create(cls, path: str) -> "KeyPair":
        """Load the private key at ``path``, or make it and the public one at ``path``.pub, in PEM.

        Raises AuditError for a key that others can read or have written.
        """
        with os_errors_as(AuditError, f"cannot have the signing key {path}"):
            if not os.path.lexists(path):
                _create(path)
            pair = cls(_loaded(path))
            pair._publish(path + PUBLIC)
        return pair

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)

    def public_pem(self) -> bytes:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def _publish(self, path: str) -> None:
        pem = self.public_pem()
        with contextlib.suppress(OSError):
            if _read(path) == pem:
                return
        _write(path, pem, 0o644)


def key_id(public: "Ed25519PublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def as_public_key(key: PublicKey) -> "Ed25519PublicKey":
    """Raises ReceiptInvalid for PEM that is no Ed25519 public key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not isinstance(key, bytes):
        return key
    try:
        found = load_pem_public_key(key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key("it is no public key in PEM") from error
    if not isinstance(found, Ed25519PublicKey):
        raise _no_key("it is of another algorithm")
    return found


def _create(path: str) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with contextlib.suppress(FileExistsError):  # another process was first: its key holds
        _write(path, pem, 0o600, replace=False)


def _loaded(path: str) -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read(path, private=True)
    try:
        found = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuditError(f"{path} is no private key", cause=str(error)) from error
    if not isinstance(found, Ed25519PrivateKey):
        raise AuditError(f"{path} is no Ed25519 key", remediation="move it away; a new one is made")
    return found


def _read(path: str, *, private: bool = False) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        about = os.fstat(fd)
        if private and (stat.S_IMODE(about.st_mode) & 0o077 or about.st_uid != os.geteuid()):
            raise AuditError(
                f"the signing key {path} is not its user's alone",
                cause=f"mode {stat.S_IMODE(about.st_mode):04o}, owner uid {about.st_uid}",
                remediation=f"chmod 600 {path}, or move it away if others may have read it",
            )
        return os.read(fd, _MAX_KEY)
    finally:
        os.close(fd)


def _write(path: str, data: bytes, mode: int, *, replace: bool = True) -> None:
    """Write all of it to disk, or nothing. Raises FileExistsError where it may not replace."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, 0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}-{os.urandom(4).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, mode)
    try:
        os.write(fd, data)
        os.fsync(fd)
        if replace:
            os.rename(temporary, path)
        else:
            os.link(temporary, path)
        sync_directory(folder)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _no_key(why: str) -> ReceiptInvalid:
    return ReceiptInvalid(
        "this is no Ed25519 public key",
        cause=why,
        remediation="give a daemon's public key in PEM: receipt.key.pub, or agentd receipt key's",
    )
