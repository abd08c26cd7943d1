"""Threat: code that has a virtual machine to itself, its kernel and all its memory, learns a key
that it uses, or talks to the key's host in another's name.

Controls: the key is in a process of the host's, as behind every wall; what the machine's programs
trust is an authority of this machine's own, whose key is not in it either. A copy of the machine
has another, though it begins with all of its source's memory. Without these (``--env KEY=...``)
the key is in that memory.
"""

import contextlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import rootfs
from tests.captured import eventually
from tests.oci import file, folder, link
from tests.security.daemons import Answer, Daemon
from tests.security.test_secrets_of_a_sandbox import (
    _LOOK,
    AGENT,
    API,
    KEY,
    OTHER,
    having_the_key,
)
from tests.upstream import Upstream

from agentd.egress import authority
from agentd.model import cassette

pytestmark = [
    pytest.mark.needs("qemu-system-x86_64", "mkfs.erofs"),
    pytest.mark.timeout(900),
]
BUNDLE = "/.agentd/certificates/bundle.pem"
PLACES = (BUNDLE, "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem")
# With the certificates of a file, and none of a variable.
_ASKS = """
import os, ssl, sys, urllib.error, urllib.request
trusted = ssl.create_default_context(cafile=sys.argv[1])
headers = {"Authorization": os.environ["KEY"]}
for url in sys.argv[2:]:
    try:
        asked = urllib.request.Request(url, headers=headers)
        print(urllib.request.urlopen(asked, timeout=120, context=trusted).status)
    except urllib.error.HTTPError as error:
        print(error.code)
    except urllib.error.URLError as error:
        print(type(error.reason).__name__)
"""


@pytest.fixture(scope="module")
def own() -> str:
    """What the image trusts."""
    return authority.make(["image.example"]).certificate


@pytest.fixture(scope="module")
def image(own: str) -> Iterator[str]:
    entries = (
        *(folder("etc/ssl"), folder("etc/ssl/certs")),
        file("etc/ssl/certs/ca-certificates.crt", own.encode()),
        link("etc/ssl/cert.pem", "certs/ca-certificates.crt"),
        link("etc/ssl/ca-bundle.pem", "/proc/1/environ"),
    )
    with rootfs.stored("python", *entries) as name:
        yield name


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    made = Upstream(tmp_path_factory.mktemp("upstream"), API, OTHER)
    yield made
    made.close()


@pytest.fixture(scope="module")
def daemon(image: str, upstream: Upstream) -> Iterator[Daemon]:
    with having_the_key(upstream) as made:
        yield made


@pytest.fixture(scope="module")
def machine(daemon: Daemon, image: str) -> Iterator[str]:
    """Its id. Commands are root's: of a guest that is taken over none can more."""
    wanted = {"backend": "qemu", "image": image, "memory": "96M", "user": "root"}
    wanted |= {"secrets": [f"KEY@{API}"], "net": ["record", f"read {OTHER}"]}
    made = daemon.ask("POST", "/v1/sandboxes", wanted)
    if made.code == "unavailable":
        pytest.skip(made.body.decode())
    assert made.status == 201, made.body
    yield str(made.json["id"])
    daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}")


def ran(daemon: Daemon, box: str, *argv: str) -> str:
    body = {"cmd": list(argv), "timeout": 300}
    done: Answer = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body)
    assert done.json["status"] == "ok", done.body
    return str(done.json["stdout"])


def trusted(daemon: Daemon, box: str) -> list[str]:
    """The files of certificates, which all are the same, as certificates."""
    found = {ran(daemon, box, "cat", place) for place in PLACES}
    (text,) = found
    mark = "-----BEGIN CERTIFICATE-----"
    return [mark + part for part in text.split(mark)[1:]]


def test_a_program_uses_a_key_that_is_nowhere_in_the_machine(
    daemon: Daemon, upstream: Upstream, machine: str, own: str
) -> None:
    upstream.asked.clear()
    found: dict[str, Any] = json.loads(ran(daemon, machine, "python3", "-c", AGENT, _LOOK))
    assert found["key"] is False
    assert found["looked at"] > 20
    assert found["used"][0] == found["posted"][0] == 200
    assert (found["elsewhere"][0], found["in a target"][0]) == (403, 403)
    assert "credential_elsewhere" in found["elsewhere"][1]
    asked = [each["headers"]["Authorization"] for each in upstream.asked]
    assert asked == [f"Bearer {KEY}", KEY]
    assert KEY not in upstream.asked[1]["body"]
    told = daemon.records(kind="denial", capability="network.secret")
    assert any(f"secret KEY is not for {OTHER}" in str(each.fields) for each in told)
    tape = daemon.ask("GET", f"/v1/sandboxes/{machine}/network/cassette").body
    assert [each.host for each in cassette.parse(tape).exchanges] == [API, API]
    assert KEY.encode() not in tape
    view = daemon.ask("GET", f"/v1/sandboxes/{machine}/network/connections")
    assert [row["alarm"] for row in view.json["connections"]].count(True) == 2
    # What the image trusts is trusted still; no place of programs' is root's to write, either.
    assert trusted(daemon, machine)[:-1] == [own]
    for place in PLACES:
        said = f"echo x >> {place}; rm -f {place} || mv /workspace {place} || echo kept"
        assert ran(daemon, machine, "sh", "-c", said) == "kept\n"


def test_a_copy_has_an_authority_of_its_own_and_no_memory_has_the_key(
    daemon: Daemon, upstream: Upstream, machine: str, own: str
) -> None:
    ran(daemon, machine, "sh", "-c", f"cp {BUNDLE} /workspace/of-the-source")
    standing = ran(daemon, machine, "printenv", "KEY").strip()
    kept = daemon.ask("POST", f"/v1/sandboxes/{machine}/snapshot")
    assert kept.status == 201, kept.body
    (state,) = Path(daemon.folder).glob("**/memory.state")
    with state.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as memory:
        assert memory.find(standing.encode()) > 0
        assert memory.find(KEY.encode()) < 0
    made = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept.json["id"]})
    assert made.status == 201, made.body
    box = str(made.json["id"])
    try:
        (first, theirs), (second, copys) = trusted(daemon, machine), trusted(daemon, box)
        assert first == second == own
        assert theirs != copys
        upstream.asked.clear()
        url = f"https://{API}/"
        asks = ("python3", "-c", _ASKS)
        assert ran(daemon, box, *asks, BUNDLE, url, f"https://{OTHER}/") == "200\n403\n"
        assert [each["headers"]["Authorization"] for each in upstream.asked] == [KEY]
        # Who is in the middle there is no one whom the source's programs would believe.
        said = ran(daemon, box, *asks, "/workspace/of-the-source", url)
        assert said == "SSLCertVerificationError\n"
        listed = f"/v1/sandboxes/{box}/network/connections"
        with contextlib.suppress(AssertionError):
            eventually(lambda: "the program ended TLS" in daemon.ask("GET", listed).body.decode())
        assert "the program ended TLS" in daemon.ask("GET", listed).body.decode()
        # The agent that comes after one that was ended has programs trust the same.
        body = {"cmd": "kill -9 $PPID; sleep 600"}
        assert daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json.get("status") != "ok"
        assert trusted(daemon, box) == [own, copys]
    finally:
        daemon.ask("DELETE", f"/v1/sandboxes/{box}")
