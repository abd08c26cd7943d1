import os
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from agentd.audit.errors import AuditError, ReceiptInvalid
from agentd.audit.keypair import KeyPair, as_public_key, key_id


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "receipt.key"
    made = KeyPair.load_or_create(str(path))
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyPair.load_or_create(str(path)).id == made.id
    public = path.with_name("receipt.key.pub").read_bytes()
    assert key_id(as_public_key(public)) == made.id
    assert sorted(os.listdir(path.parent)) == ["receipt.key", "receipt.key.pub"]
    der = made.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert made.id == sha256(der).hexdigest()


def test_two_processes_that_make_it_at_once_have_one(tmp_path: Path) -> None:
    code = (
        "import sys; from agentd.audit.keypair import KeyPair;"
        "print(KeyPair.load_or_create(sys.argv[1]).id)"
    )
    import sys

    argv = [sys.executable, "-c", code, str(tmp_path / "key")]
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(3)]
    assert len({process.communicate(timeout=120)[0] for process in processes}) == 1
    assert [process.returncode for process in processes] == [0] * 3


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    KeyPair.load_or_create(str(path))
    path.chmod(0o640)
    with pytest.raises(AuditError, match=r"not its user's alone: mode 0640.*chmod 600"):
        KeyPair.load_or_create(str(path))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    KeyPair.load_or_create(str(tmp_path / "key"))
    (tmp_path / "link").symlink_to("key")
    with pytest.raises(AuditError, match="cannot have"):
        KeyPair.load_or_create(str(tmp_path / "link"))


def test_what_is_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"nonsense")
    path.chmod(0o600)
    with pytest.raises(AuditError, match="no private key"):
        KeyPair.load_or_create(str(path))
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(AuditError, match="no Ed25519 key"):
        KeyPair.load_or_create(str(path))
    pem = other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data in (pem, b"nonsense"):
        with pytest.raises(ReceiptInvalid, match="no Ed25519 public key"):
            as_public_key(data)
