"""Which certificates the programs of a sandbox trust whose requests are judged: what its root has,
and those of an authority of its own. Nothing is dialled."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from tests.oci import Images, Layout, busybox, file, folder, link

from agentd import Sandbox
from agentd.egress import authority

pytestmark = [pytest.mark.timeout(900)]
RULES = ["read api.example.com"]
BUNDLE = "/.agentd/certificates/bundle.pem"
OWN = "-----BEGIN CERTIFICATE-----\nof the image\n-----END CERTIFICATE-----\n"
WALLS = ("linux", pytest.param("oci", marks=pytest.mark.needs("runc")))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    made = Images(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    return made


@pytest.fixture
def image(images: Images, tmp_path: Path) -> Iterator[str]:
    """One of Red Hat's places, a link to it, one that leads to the kernel's, and one to nowhere."""
    layout = Layout(tmp_path / "layout")
    layer = busybox(
        *(folder("etc"), folder("etc/ssl"), folder("etc/ssl/certs")),
        *(folder("etc/pki"), folder("etc/pki/tls"), folder("etc/pki/tls/certs")),
        file("etc/pki/tls/certs/ca-bundle.crt", OWN.encode()),
        link("etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"),
        link("etc/ssl/ca-bundle.pem", "/proc/1/environ"),
        link("etc/ssl/certs/ca-certificates.crt", "../../../../../gone"),
    )
    images.run("pull", layout.add([layer], None, tag="one"), "--name", "one")
    yield "one"


def read(sandbox: Sandbox, path: str) -> str:
    return sandbox.run(["cat", path], check=True).stdout.decode()


@pytest.mark.needs("skopeo", "umoci")
@pytest.mark.parametrize("wall", WALLS)
def test_an_images_own_are_kept_and_no_link_of_its_leads_out(image: str, wall: str) -> None:
    for wanted in ({}, {"user": "root", "writable": True}):
        with Sandbox.create(image=image, backend=wall, net=RULES, **wanted) as sandbox:
            found = read(sandbox, BUNDLE)
            assert found.startswith(OWN) and found.count("BEGIN CERTIFICATE") == 2
            for place in ("/etc/ssl/cert.pem", "/etc/pki/tls/certs/ca-bundle.crt"):
                assert read(sandbox, place) == found
            done = sandbox.run(f"echo x > {BUNDLE}")
            assert done.exit_code != 0, "what programs trust is not theirs to change"
    with Sandbox.create(image=image, backend=wall, net=["api.example.com"]) as sandbox:
        assert read(sandbox, "/etc/ssl/cert.pem") == OWN


@pytest.mark.parametrize("wall", WALLS)
def test_the_hosts_own_are_kept(wall: str) -> None:
    places = [Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt")]
    place = next((each for each in places if each.is_file()), None)
    if place is None:
        pytest.skip("this machine has no file of certificates")
    with Sandbox.create(backend=wall, net=RULES) as sandbox:
        found = read(sandbox, BUNDLE)
        assert read(sandbox, str(place)) == found
        own = found.removeprefix(place.read_text().rstrip("\n") + "\n")
        assert own.count("BEGIN CERTIFICATE") == 1 and len(own) < 2000
        with Sandbox.create(backend=wall, net=RULES) as other:
            assert not read(other, BUNDLE).endswith(own), "each has an authority of its own"


OF_DEBIAN = "/etc/ssl/certs/java/cacerts"
OF_TEMURIN = "/opt/java/openjdk/lib/security/cacerts"


def of_java(store: bytes, tmp_path: Path) -> list[str]:
    """The certificates of a store, PEM, as Java reads it, which checks it by its password."""
    file = tmp_path / "store"
    file.write_bytes(store)
    argv = ["keytool", "-list", "-rfc", "-keystore", str(file), "-storepass", "changeit"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return sorted(re.findall(r"-----BEGIN.*?-----END CERTIFICATE-----\n", told, re.S))


@pytest.mark.needs("keytool")
@pytest.mark.parametrize("wall", WALLS)
def test_the_hosts_java_trusts_it_beside_its_own(wall: str, tmp_path: Path) -> None:
    if not Path(OF_DEBIAN).is_file():
        pytest.skip("this machine's Java has its certificates elsewhere")
    with Sandbox.create(backend=wall, net=RULES) as sandbox:
        store = sandbox.files.read(OF_DEBIAN)
        own = "-----BEGIN" + read(sandbox, BUNDLE).rpartition("-----BEGIN")[2]
        assert sandbox.run(f"echo x > {OF_DEBIAN}").exit_code != 0
    before = of_java(Path(OF_DEBIAN).read_bytes(), tmp_path)
    assert of_java(store, tmp_path) == sorted([*before, own])
    with Sandbox.create(backend=wall, net=["api.example.com"]) as sandbox:
        assert sandbox.files.read(OF_DEBIAN) == Path(OF_DEBIAN).read_bytes()


@pytest.mark.needs("skopeo", "umoci", "keytool")
@pytest.mark.parametrize("wall", WALLS)
def test_an_images_java_trusts_it_beside_its_own(images: Images, tmp_path: Path, wall: str) -> None:
    """Java's own stores are of PKCS #12 and not encrypted; one that is says nothing."""
    known = authority.make(["known.example.com"]).certificate
    held = pkcs12.PKCS12Certificate(x509.load_pem_x509_certificate(known.encode()), b"known")
    plain = pkcs12.serialize_java_truststore([held], serialization.NoEncryption())
    encrypted = serialization.BestAvailableEncryption(b"changeit")
    for tag, store, expected in (
        ("plain", plain, [known]),
        ("encrypted", pkcs12.serialize_java_truststore([held], encrypted), None),
        ("broken", b"\xfe\xed", None),
    ):
        layer = busybox(
            *(folder("opt"), folder("opt/java"), folder("opt/java/openjdk")),
            *(folder("opt/java/openjdk/lib"), folder("opt/java/openjdk/lib/security")),
            file(OF_TEMURIN.lstrip("/"), store),
            *(folder("usr"), link("usr/java", "/proc/1"), folder("usr/lib"), folder("usr/lib/jvm")),
            link("usr/lib/jvm/default", "/opt/java/openjdk"),
        )
        images.run("pull", Layout(tmp_path / tag).add([layer], None, tag=tag), "--name", tag)
        with Sandbox.create(image=tag, backend=wall, net=RULES) as sandbox:
            found = sandbox.files.read(OF_TEMURIN)
            own = "-----BEGIN" + read(sandbox, BUNDLE).rpartition("-----BEGIN")[2]
        if expected is None:
            assert found == store, "what cannot be read is left, where nothing stands in for it"
        else:
            assert of_java(found, tmp_path) == sorted([*expected, own])


def agentd(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agentd", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.needs("skopeo", "umoci")
@pytest.mark.parametrize("wall", WALLS)
def test_no_store_of_an_image_keeps_a_sandbox_from_beginning(
    images: Images, tmp_path: Path, wall: str
) -> None:
    """Whoever makes an image writes both files: certificates that never end, and such that lie
    within each other."""
    most = 8 << 20
    endless = b"-----BEGIN CERTIFICATE-----" * (most // 27)
    of_x509 = bytes.fromhex("060a2a864886f70d01091601a082ffff0482")
    for tag, store in (
        ("endless", b"no store"),
        ("nested", (of_x509 + b"\xff\xff") * (most // 20)),
        ("empty", (of_x509 + bytes(2)) * (most // 20)),
    ):
        layer = busybox(
            *(folder("etc"), folder("etc/ssl"), file("etc/ssl/cert.pem", endless)),
            *(folder("opt"), folder("opt/java"), folder("opt/java/openjdk")),
            *(folder("opt/java/openjdk/lib"), folder("opt/java/openjdk/lib/security")),
            file(OF_TEMURIN.lstrip("/"), store),
        )
        images.run("pull", Layout(tmp_path / tag).add([layer], None, tag=tag), "--name", tag)
        with Sandbox.create(image=tag, backend=wall, net=RULES) as sandbox:
            assert sandbox.files.read(BUNDLE).startswith(endless)
            found = sandbox.files.read(OF_TEMURIN)
        if tag == "endless":
            assert found == store
        else:  # whole, as what a store ends with tells
            begun = "changeit".encode("utf-16-be") + b"Mighty Aphrodite" + found[:-20]
            assert hashlib.sha1(begun, usedforsecurity=False).digest() == found[-20:]


def test_explain_says_of_a_request_whether_it_would_be_allowed() -> None:
    rules = "read api.example.com,!GET api.example.com/private/**"
    url = "https://api.example.com"
    for said, code, told in (
        (f"{url}/v1", 0, "GET /v1 at api.example.com:443 is allowed by read api.example.com/**"),
        (f"POST {url}/v1", 1, "refused: no rule allows POST /v1"),
        (f"{url}/private/x", 1, "refused: denied by !GET api.example.com/private/**"),
        (f"{url}//private/x", 1, "refused: denied by !GET api.example.com/private/**"),
    ):
        done = agentd("net", "explain", said, "--net", rules)
        assert done.returncode == code and told in done.stdout, done
