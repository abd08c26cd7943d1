"""Programs as their users have them, over networks of rules: no proxy variable, and no option of
theirs. What each reaches, what it is refused, and a secret that it uses by its placeholder.

``make test-clients`` asks all of them behind each wall; the gate those that cost little.
"""

import base64
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os.path import exists
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from tests import oci, qemu, rootfs
from tests.integration.clients import origin
from tests.integration.clients.origin import Origin
from tests.integration.clients.rows import PROGRAMS, ROWS, Program
from tests.integration.read_server import EchoServer, serving
from tests.integration.test_certificates_of_a_sandbox import BUNDLE, OF_DEBIAN, of_java
from tests.security.daemons import Daemon, running
from tests.unit.capability.fetch.authority import Authority

from agentd import Sandbox
from agentd.sandbox.backends.certificates import VARIABLES

ALL = os.environ.get("AGENTD_TEST_CLIENTS") == "1"
pytestmark = [pytest.mark.needs("git"), pytest.mark.timeout(900)]
OPEN, READ, KEYED, OTHER = (f"{name}.example.com" for name in ("open", "read", "keyed", "other"))
KEY = "a-key-of-a-test-that-never-enters-it"
RULES = [f"GET|HEAD {READ}/v1/**", f"POST {READ}/v1/git/*/git-upload-pack"]
_WGETRC, _APT_CONFIG = "ca_certificate = /made/ca.pem\n", 'Acquire::https::CaInfo "/made/ca.pem";\n'
_WALLS = {
    "linux": (),
    "oci": ("runc",),
    "gvisor": ("runsc",),
    "qemu": qemu.PROGRAMS,
}
#: A machine has all of them, since each of its programs is translated anew.
_PACKAGES = tuple(sorted({each for program in ROWS for each in program.packages}))
#: What the image of a machine has in the gate; the other walls have the host's programs.
_IN_A_MACHINE = ("curl", "wget", "git")


@dataclass(frozen=True)
class World:
    """A daemon, and a server that has the names of the rules. ``made`` is a folder which has the
    certificate of the server's authority, as programs want it."""

    daemon: Daemon
    server: EchoServer
    made: Path

    def asked(self, host: str) -> list[tuple[str, str]]:
        """The requests that came for ``host``: first line, and who it says it is from."""
        found = [(line, dict(fields)) for line, fields, _ in self.server.seen]
        named = [(line, {k.lower(): v for k, v in fields.items()}) for line, fields in found]
        return [(line, f.get("authorization", "")) for line, f in named if f.get("host") == host]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("clients")
    folder.chmod(0o755)
    authority = Authority(folder, [OPEN, READ, KEYED, OTHER], [])
    origin.prepare(folder)
    made = _made(folder, Path(authority.ca).read_bytes())
    handler = type("OfThisFolder", (Origin,), {"folder": folder})
    with serving(authority.server, handler) as server:
        names = [OPEN, READ, KEYED, OTHER]
        config = '[sandbox]\nnetworks = ["none", "restricted"]\n[egress]\n'
        config += f'allow = ["public", "{OPEN}", "{READ}", "{KEYED}", "{OTHER}"]\n'
        config += f'ca_file = "{authority.ca}"\n'
        for name in names:
            address = f"127.0.0.1:{server.server_port}"
            config += f'[[egress.host]]\nname = "{name}"\naddress = "{address}"\n'
        with rootfs.own_store(), running(config) as daemon:
            yield World(daemon, server, made)


@pytest.fixture(scope="module")
def image(world: World) -> str:
    """Of machines."""
    deepest = (
        "etc/ssl/certs/java",
        "var/lib/dpkg",
        "var/log/apt",
        "var/cache/apt/archives/partial",
    )
    places = (Path(place) for place in deepest)
    names = (str(each) for place in places for each in (*reversed(place.parents[:-1]), place))
    folders = (oci.folder(name) for name in names)
    trusted = (each for each in ("/etc/ssl/certs/ca-certificates.crt", OF_DEBIAN) if exists(each))
    files = (oci.file(place[1:], Path(place).read_bytes()) for place in trusted)
    return rootfs.pulled("every-client" if ALL else "clients", *folders, *files)


def _made(folder: Path, ca: bytes) -> Path:
    made = folder / "made"
    made.mkdir()
    (made / "ca.pem").write_bytes(ca)
    (made / "wgetrc").write_text(_WGETRC)
    (made / "apt.conf").write_text(_APT_CONFIG)
    entry = pkcs12.PKCS12Certificate(x509.load_pem_x509_certificate(ca), b"own")
    encryption = serialization.BestAvailableEncryption(b"changeit")
    (made / "ca.p12").write_bytes(pkcs12.serialize_java_truststore([entry], encryption))
    if ALL and shutil.which("go"):
        argv = ["go", "build", "-o", f"{made}/go-client", f"{_sources()}/client.go"]
        subprocess.run(argv, env={**os.environ, "CGO_ENABLED": "0"}, check=True)
    if ALL and shutil.which("javac"):
        subprocess.run(["javac", "-d", str(made), f"{_sources()}/Client.java"], check=True)
    modules = [module for program in ROWS for module in program.modules]
    if ALL and shutil.which("npm"):
        argv = ["npm", "install", "--silent", "--prefix", str(made), *modules]
        subprocess.run(argv, check=True)
    return made


def _sources() -> Path:
    return Path(__file__).parent / "clients/programs"


def _trusting() -> dict[str, str]:
    """What a user sets who has an authority of their own, and no agentd that reads anything."""
    found = dict.fromkeys(VARIABLES, "/made/ca.pem")
    java = "-Djavax.net.ssl.trustStore=/made/ca.p12 -Djavax.net.ssl.trustStorePassword=changeit"
    own = {"JAVA_TOOL_OPTIONS": java, "WGETRC": "/made/wgetrc", "APT_CONFIG": "/made/apt.conf"}
    return found | own


@dataclass(frozen=True)
class Kind:
    """What programs can share a sandbox by."""

    wall: str
    writable: bool
    packages: tuple[str, ...]
    image: str = ""

    @contextmanager
    def sandbox(self, world: World, **wanted: Any) -> Iterator[Sandbox]:
        if self.writable:
            wanted |= {"user": "root", "writable": True}
        if self.wall == "qemu":
            wanted |= {"image": self.image, "memory": "768M" if ALL else "192M"}
        mounts = [f"{_sources()}:{PROGRAMS}:ro", f"{world.made}:/made:ro"]
        wanted |= {"mounts": mounts, "packages": self.packages, "ttl": "3h"}
        with Sandbox.create(url=world.daemon.url, backend=self.wall, **wanted) as made:
            yield made


@functools.cache
def _kind(wall: str, packages: tuple[str, ...], *, writable: bool = False) -> Kind:
    """The same one for the same words: by that pytest knows that it has its sandboxes."""
    return Kind(wall, writable, packages)


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    if found.wall == "qemu":
        found = replace(found, image=request.getfixturevalue("image"))
    return found


@pytest.fixture(scope="module")
def opened(world: World, kind: Kind) -> Iterator[Sandbox]:
    """Whose connections nobody reads, and whose programs were told of the server's authority."""
    with kind.sandbox(world, net=[OPEN], env=_trusting()) as made:
        yield made


@pytest.fixture(scope="module")
def read(world: World, kind: Kind) -> Iterator[Sandbox]:
    """Whose requests are judged, and which has a secret."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEY", KEY)
        with kind.sandbox(world, net=RULES, secrets=[f"KEY=env:KEY@{KEYED}"]) as made:
            yield made


def _runs(sandbox: Sandbox, script: str, base: str, before: str = "") -> tuple[bool, str]:
    done = sandbox.run(["sh", "-ec", before + script, "sh", base], timeout=300)
    return done.exit_code == 0, (done.stdout + done.stderr).decode(errors="replace")


def _cases() -> Iterator[object]:
    for wall, needed in _WALLS.items():
        for program in ROWS:
            if wall not in ("linux", "qemu") and program.writable:
                continue
            in_gate = {"linux": program.in_gate, "qemu": program.name in _IN_A_MACHINE}
            if not ALL and not in_gate.get(wall):
                continue
            needs = pytest.mark.needs(*needed, *program.needs)
            own = _PACKAGES if wall == "qemu" and ALL and not program.writable else program.packages
            kind = _kind(wall, own, writable=program.writable)
            # One that is equal to no other: pytest would run those of one program together.
            yield pytest.param(kind, replace(program), id=f"{program.name}-{wall}", marks=needs)


each = pytest.mark.parametrize(
    ("kind", "program"), list(_cases()), indirect=["kind"], scope="module"
)


@each
def test_it_reaches_the_host_that_a_rule_names_and_no_other(
    world: World, opened: Sandbox, program: Program
) -> None:
    before = len(world.asked(OPEN))
    reached, told = _runs(opened, program.reads, f"{OPEN}/v1")
    assert reached, told
    assert len(world.asked(OPEN)) > before
    reached, told = _runs(opened, program.reads, f"{OTHER}/v1")
    assert not reached, told
    assert not world.asked(OTHER)


@each
def test_it_is_read_without_being_told_and_refused_what_no_rule_has(
    world: World, read: Sandbox, program: Program
) -> None:
    before = len(world.asked(READ))
    reached, told = _runs(read, program.reads, f"{READ}/v1")
    assert reached, told
    script, base = (program.writes, "v1") if program.writes else (program.reads, "v2")
    reached, told = _runs(read, script, f"{READ}/{base}")
    assert not reached, told
    came = [line for line, _ in world.asked(READ)[before:]]
    assert came and all(
        line.startswith(("GET /v1", "HEAD /v1")) or "upload-pack" in line for line in came
    )
    last = [row for row in read.network.connections().connections if row.method][-1]
    assert (last.allowed, last.status) == (False, 403), told


@each
def test_it_uses_a_secret_by_its_placeholder(world: World, read: Sandbox, program: Program) -> None:
    before = len(world.asked(KEYED))
    told_key = read.run(["printenv", "KEY"], check=True).text.strip()
    assert told_key and told_key != KEY
    reached, told = _runs(read, program.reads, f"{KEYED}/v1", 'export API_TOKEN="$KEY"\n')
    assert reached, told
    basic = base64.b64encode(f"user:{KEY}".encode()).decode()
    said = {who for _, who in world.asked(KEYED)[before:]}
    assert said & {f"Bearer {KEY}", f"Basic {basic}"}, (said, told)
    assert told_key not in str(said)


@pytest.mark.skipif(not ALL, reason="make test-clients asks it")
@pytest.mark.needs("keytool", *_WALLS["qemu"])
@pytest.mark.parametrize("kind", [_kind("qemu", _PACKAGES)], indirect=True)
def test_java_of_a_machine_trusts_its_authority_beside_its_own(
    read: Sandbox, tmp_path: Path
) -> None:
    if not exists(OF_DEBIAN):
        pytest.skip("this machine's Java has its certificates elsewhere")
    own = "-----BEGIN" + read.files.read(BUNDLE).decode().rpartition("-----BEGIN")[2]
    before = of_java(Path(OF_DEBIAN).read_bytes(), tmp_path)
    assert of_java(read.files.read(OF_DEBIAN), tmp_path) == sorted([*before, own])
