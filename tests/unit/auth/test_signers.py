import errno
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from agentd.auth import signers as module
from agentd.auth.keyfiles import key_id, load_private, new_pair, read_public
from agentd.auth.signers import POLL_SECONDS, USUAL_SCOPES, Signers
from agentd.model.errors import InvalidInput

PEM = serialization.Encoding.PEM
INFO = serialization.PublicFormat.SubjectPublicKeyInfo


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "signers"
    made.mkdir(mode=0o755)
    return made


def public(key=None):
    key = key or ed25519.Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(PEM, INFO)


def put(folder, name, data):
    """As an administrator would: written beside, and renamed into its place."""
    path = folder / name
    path.with_suffix(".tmp").write_bytes(data if isinstance(data, bytes) else data.encode())
    path.with_suffix(".tmp").chmod(0o644)
    path.with_suffix(".tmp").rename(path)
    return path


def add(folder, name, settings=None):
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    if settings is not None:
        put(folder, f"{name}.toml", settings)
    put(folder, f"{name}.pem", public(key))
    return key_id(key)


def test_a_key_acts_as_its_files_name(folder):
    alice = add(folder, "alice")
    (folder / "README").write_text("not a signer")
    found = Signers(str(folder))
    assert found.problems == ()
    who = found.find(alice).acts_as()
    assert (who.name, who.scopes, who.via, who.credential) == (
        "alice",
        USUAL_SCOPES,
        "signed",
        alice,
    )
    assert not {"admin", "approve", "keys"} & who.scopes
    assert found.find("ed25519:" + "0" * 32) is None


def test_a_toml_beside_it_says_more(folder):
    settings = 'principal = "ops:ci"\nscopes = ["approve", "read"]\nexpires = 1970-01-02T00:00:00Z'
    key = add(folder, "ci", settings)
    (signer,) = Signers(str(folder)).all()
    assert signer.key_id == key
    assert signer.acts_as().name == "ops:ci"
    assert (signer.scopes, signer.expires) == (frozenset({"approve", "read"}), 86400.0)


def test_no_scopes_are_none(folder):
    add(folder, "a", "scopes = []")
    assert Signers(str(folder)).all()[0].scopes == frozenset()


def test_what_is_removed_is_trusted_no_longer_at_once(folder):
    alice, bob = add(folder, "alice"), add(folder, "bob")
    clock = Clock()
    found = Signers(str(folder), clock)
    assert found.find(alice) and found.find(bob)
    (folder / "alice.pem").unlink()
    assert found.find(alice) is None  # the clock stands still: nothing was polled
    assert found.find(bob)


def test_what_is_changed_holds_at_once(folder):
    alice = add(folder, "alice")
    clock = Clock()
    found = Signers(str(folder), clock)
    put(folder, "alice.toml", 'scopes = ["read"]')
    assert found.find(alice).scopes == {"read"}
    (folder / "alice.toml").write_text("scopes = []")  # in place: the directory stays as it is
    assert found.find(alice).scopes == frozenset()
    put(folder, "alice.toml", "scopes = [1]")
    assert found.find(alice) is None
    (folder / "alice.toml").unlink()
    clock.now += POLL_SECONDS
    assert found.find(alice).scopes == USUAL_SCOPES
    new = add(folder, "alice")
    assert found.find(alice) is None and found.find(new)


def test_a_new_key_is_found_with_the_next_look(folder, monkeypatch):
    clock = Clock()
    found = Signers(str(folder), clock)
    looks = []
    real = module._look_at
    monkeypatch.setattr(module, "_look_at", lambda path: (looks.append(path), real(path))[1])
    alice = add(folder, "alice")
    for _ in range(10):
        assert found.find(alice) is None
    assert looks == []
    clock.now += POLL_SECONDS
    assert found.find(alice) and found.find(alice)
    assert len(looks) == 1
    bob = add(folder, "bob")
    assert found.find(bob) is None
    found.reload()
    assert found.find(bob)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("scopes = ['fly']", "unknown scope 'fly'"),
        ("scope = ['run']", "unknown field `scope`"),
        ("scopes = 'run'", "toml is wrong"),
        ("principal = 'a b'", "no name for a principal"),
        ("principal = ''", "no name for a principal"),
        ("expires = 2030-01-01T00:00:00", "toml is wrong"),  # in which time zone?
        ("expires = 2030-01-01", "toml is wrong"),
        ("principal =", "toml is wrong"),
        (b"\xff", "toml is wrong"),
        ("#" * 5000, "more than 4096 bytes"),
    ],
)
def test_what_is_not_understood_is_not_trusted(folder, settings, why):
    key = add(folder, "alice", settings)
    found = Signers(str(folder))
    assert found.find(key) is None
    assert len(found.problems) == 1 and why in found.problems[0]
    assert found.problems[0].startswith("alice.pem: ")


def private_pem():
    return ed25519.Ed25519PrivateKey.generate().private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.pem", b"", "no public key in PEM"),
        ("a.pem", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "in PEM"),
        ("a.pem", public(ec.generate_private_key(ec.SECP256R1()).public_key()), "not of Ed25519"),
        ("a.pem", private_pem(), "belongs to the signer alone"),
        ("a.pem", public() + b"\n" * 5000, "more than 4096 bytes"),
        ("-a.pem", public(), "a signer's name"),
        ("a b.pem", public(), "a signer's name"),
        ("a:b.pem", public(), "a signer's name"),
        ("x.toml", "scopes = []", "there is no x.pem"),
    ],
)
def test_what_is_no_key_is_told_and_the_others_hold(folder, name, data, why):
    good = add(folder, "good")
    put(folder, name, data)
    found = Signers(str(folder))
    assert [signer.key_id for signer in found.all()] == [good]
    assert len(found.problems) == 1 and why in found.problems[0]
    assert found.problems[0].startswith(name)


def test_a_key_under_two_names_has_none(folder):
    key = public()
    put(folder, "alice.pem", key)
    put(folder, "bob.pem", key)
    found = Signers(str(folder), Clock())
    assert found.all() == []
    assert found.problems == ("bob.pem: alice.pem is the same key",)
    (folder / "bob.pem").unlink()
    found.reload()
    assert [signer.name for signer in found.all()] == ["alice"]


# In a sticky folder others could still add a signer of their own; and a file's bit means nothing.
@pytest.mark.parametrize(
    "what",
    ["folder", "sticky", "file", "bit", "toml", "parent", "link", "fifo", "directory"],
)
def test_what_others_may_have_written_is_not_trusted(folder, what):
    key = add(folder, "alice", "scopes = ['read']")
    found = Signers(str(folder))
    assert found.find(key)
    match what:
        case "folder":
            folder.chmod(0o775)
        case "sticky":
            folder.chmod(0o1777)
        case "file":
            (folder / "alice.pem").chmod(0o664)
        case "bit":
            (folder / "alice.pem").chmod(0o1666)
        case "toml":
            (folder / "alice.toml").chmod(0o646)
        case "parent":
            folder.parent.chmod(0o777)
        case "link":
            (folder / "alice.pem").rename(folder.parent / "elsewhere")
            (folder / "alice.pem").symlink_to(folder.parent / "elsewhere")
        case "fifo":
            (folder / "alice.pem").unlink()
            os.mkfifo(folder / "alice.pem")
        case _:
            (folder / "alice.pem").unlink()
            (folder / "alice.pem").mkdir()
    found.reload()
    assert found.find(key) is None and found.all() == []
    assert found.problems


def test_a_directory_in_a_sticky_one_is_trusted(folder):
    key = add(folder, "alice")
    folder.parent.chmod(0o1777)
    assert Signers(str(folder)).find(key)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
@pytest.mark.parametrize("what", ["alice.pem", ".", ".."])
def test_what_belongs_to_somebody_else_is_not_trusted(folder, what):
    key = add(folder, "alice")
    os.chown(folder / what, 12345, -1)
    found = Signers(str(folder))
    assert found.find(key) is None
    assert "belongs to uid 12345" in found.problems[0]


def test_a_link_to_the_directory_is_followed_where_only_root_could_turn_it(folder):
    key = add(folder, "alice")
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert Signers(str(link)).find(key)
    place = folder.parent / "open"
    place.mkdir()
    place.chmod(0o777)
    (place / "link").symlink_to(folder)
    found = Signers(str(place / "link"))
    assert found.find(key) is None and "others may write" in found.problems[0]


def test_a_link_leads_to_no_directory_that_others_could_replace(folder, tmp_path):
    key = add(folder, "alice")
    place = tmp_path / "open"
    place.mkdir()
    folder.rename(place / "signers")
    link = tmp_path / "link"
    link.symlink_to(place / "signers")
    found = Signers(str(link))
    assert found.find(key)
    place.chmod(0o777)
    found.reload()
    assert found.find(key) is None
    assert f"others may write {place}" in found.problems[0]


def test_a_directory_that_is_gone_or_too_large_trusts_nobody(folder, monkeypatch):
    key = add(folder, "alice")
    clock = Clock()
    found = Signers(str(folder), clock)
    assert found.find(key)
    folder.rename(folder.parent / "away")
    assert found.find(key) is None
    assert "No such file" in found.problems[0]
    (folder.parent / "away").rename(folder)
    clock.now += POLL_SECONDS
    assert found.find(key)
    monkeypatch.setattr(module, "MAX_SIGNERS", 5)
    for number in range(10):
        (folder / f"{number}.toml").touch()
    found.reload()
    assert found.find(key) is None and "more than 5 signers" in found.problems[0]


def test_a_key_that_anybody_could_sign_for_is_none(folder):
    """A point of small order: this signature holds for it, and nobody has its private key."""
    forged = (1).to_bytes(32, "little") + bytes(32)
    neutral = ed25519.Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    neutral.verify(forged, b"anything at all")  # without our check it would count
    put(folder, "evil.pem", public(neutral))
    assert Signers(str(folder)).all() == []


P = (1 << 255) - 19
Y8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)


@pytest.mark.parametrize("y", [0, 1, P - 1, P, P + 1, Y8, P - Y8])
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_every_spelling_of_a_small_point_is_refused(y, sign):
    raw = (y | sign).to_bytes(32, "little")
    key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    with pytest.raises(ValueError, match="small order"):
        read_public(public(key))


def test_a_new_pair_is_its_owners_and_writes_over_nothing(tmp_path):
    path = tmp_path / "ci.pem"
    id_, beside = new_pair(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = load_private(str(path))
    assert key_id(key.public_key()) == id_ == key_id(read_public(Path(beside).read_bytes()))
    assert beside == str(tmp_path / "ci.pub.pem")
    before = path.read_bytes()
    with pytest.raises(InvalidInput, match="File exists"):
        new_pair(str(path))
    assert path.read_bytes() == before
    path.unlink()
    with pytest.raises(InvalidInput, match="File exists"):
        new_pair(str(path))
    assert not path.exists()  # no half of a pair


def test_what_cannot_sign_is_told(tmp_path):
    path = tmp_path / "key.pem"
    with pytest.raises(InvalidInput, match="No such file"):
        load_private(str(path))
    encrypted = ed25519.Ed25519PrivateKey.generate().private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for data, why in [
        (b"nonsense", "no private key"),
        (public(), "no private key"),
        (encrypted, "encrypted"),
        (other, "not of Ed25519"),
        (b"x" * 5000, "more than 4096"),
    ]:
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(InvalidInput, match=why):
            load_private(str(path))
    path.write_bytes(private_pem())
    path.chmod(0o640)
    with pytest.raises(InvalidInput, match="others may use it"):
        load_private(str(path))
    path.chmod(0o400)
    assert load_private(str(path))


def test_who_could_not_be_read_for_want_of_a_descriptor_is_read_again(folder, monkeypatch):
    alice, bob = add(folder, "alice"), add(folder, "bob")
    clock = Clock()
    real = os.open

    def opened(path, *of, **more):
        if path == "bob.pem":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *of, **more)

    with monkeypatch.context() as short:
        short.setattr(module.os, "open", opened)
        found = Signers(str(folder), clock)
        assert found.find(bob) is None and "Too many open files" in found.problems[0]
    clock.now += POLL_SECONDS
    assert found.find(alice) and found.find(bob) and found.problems == ()
