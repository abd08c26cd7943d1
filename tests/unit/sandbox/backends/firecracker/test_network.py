"""A network of rules on machines that behave as Firecracker's: what a guest dials at port 1019 of
its host arrives at a socket in the jail, and the relay decides there."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.test_streams_of_a_guest import closed, frame, question

from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.linux import dialled
from agentd.model.errors import Refused
from agentd.model.principal import local
from agentd.sandbox.manager import Manager

pytestmark = pytest.mark.root
WHO = local("test")
NXDOMAIN = 3


@pytest.fixture
def older() -> bool:
    """Whether the agent in the image is of an older release."""
    return False


@pytest.fixture
def create(make_backend: Callable[..., Any], older: bool) -> Iterator[Callable[..., Sandbox]]:
    pipeline = Pipeline(Manager(made={"firecracker": make_backend("1.16.1", older=older)}))
    service = EmbeddedService(pipeline, WHO)

    def create(snapshot: Any = None, **wanted: Any) -> Sandbox:
        usual = {"backend": "firecracker", "memory": "64M"}
        if snapshot is None:
            spec = build.sandbox_spec(**(usual | wanted))
        else:
            spec = build.restored_spec(snapshot.spec)
        return Sandbox(service, service.adopt(pipeline.open(WHO, spec, snapshot)))

    yield create
    pipeline.manager.close()


def places(place: Path) -> set[Path]:
    """The sockets that Firecracker connects such a guest to (its docs/vsock.md)."""
    return set(place.glob("jails/*/*/root/vsock_1019"))


def dial(path: Path, said: bytes) -> socket.socket:
    """As its monitor does, which is the jail's user."""
    assert path.stat().st_uid == path.parent.stat().st_uid != 0
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(60)
    stream.connect(os.path.relpath(path))
    stream.sendall(said)
    return stream


def refused(path: Path) -> tuple[int, bool]:
    """What comes of a name and of a number that no rule has: the answer's code, and a reset."""
    with dial(path, dialled.header(dialled.DNS) + question(7, "other.example")) as asking:
        code = frame(asking)[4 + 3] & 15
    head = dialled.header(dialled.TCP4, socket.inet_aton("8.8.8.8"), 443)
    with dial(path, head) as stream:
        return code, closed(stream)


def test_what_a_guest_dials_is_the_relays_to_judge(
    create: Callable[..., Sandbox], place: Path
) -> None:
    with create(net=["allowed.invalid:443"]) as sandbox:
        said = sandbox.enforcement["network"]
        assert (said.asked, said.enforced) == ("restricted", True)
        assert said.detail == "no network card, and by the host's relay allowed.invalid:443"
        (path,) = places(place)
        assert refused(path) == (NXDOMAIN, True)
        rows = sandbox.network.connections().connections
        assert {row.name or row.address for row in rows} == {"other.example", "8.8.8.8"}
        assert sandbox.network.set(["pypi"]).egress == ("pypi",)
        with sandbox.snapshot() as kept, create(kept) as copy:
            (own,) = places(place) - {path}
            assert refused(own) == (NXDOMAIN, True)
            assert copy.network.connections().totals["denied"] == 2
            assert copy.network.set([]).egress == ()
            assert sandbox.network.get().egress == ("pypi",)
    assert places(place) == set()


def test_what_may_be_moved_is_bounded_and_told(create: Callable[..., Sandbox]) -> None:
    with create(net=["pypi"], net_bytes="1M", net_rate="64K") as sandbox:
        told = "no network card, and by the host's relay pypi; 1 MiB in all; 64 KiB a second"
        assert sandbox.enforcement["network"].detail == told
        assert run_true(sandbox).enforcement["network"].detail == told
        sandbox.network.set(["npm"])
        assert run_true(sandbox).enforcement["network"].detail == told.replace("pypi", "npm")


def run_true(sandbox: Sandbox) -> Any:
    """In a directory that there is: the stand-in's guest has the host's."""
    return sandbox.run(["true"], cwd="/")


def test_without_rules_nothing_listens(create: Callable[..., Sandbox], place: Path) -> None:
    with create(net="none"):
        assert places(place) == set()
    with pytest.raises(Refused, match="has no network card"):
        create(net="host")


def told(place: Path, besides: set[str]) -> dict[str, Any]:
    """What the agent of the machine was told that is none of ``besides``, and its name."""
    (path,) = (
        each for each in place.glob("jails/*/*/root/guest-*/told") if str(each) not in besides
    )
    besides.add(str(path))
    request: dict[str, Any] = json.loads(path.read_text())
    return request


def test_each_machine_is_told_of_an_authority_of_its_own_where_requests_are_judged(
    create: Callable[..., Sandbox], place: Path
) -> None:
    seen: set[str] = set()
    with create(net=["read api.example.com/v1/*", "pypi"]) as sandbox:
        first = told(place, seen)
        with sandbox.snapshot() as kept, create(kept):
            copy = told(place, seen)
    for each in (first, copy):
        assert each["net"]["relay"] == dialled.PORT
        assert each["net"]["authority"].startswith("-----BEGIN CERTIFICATE-----\n")
        assert each["env"]["SSL_CERT_FILE"] == "/.agentd/certificates/bundle.pem"
    assert first["net"] != copy["net"]
    with create(net=["pypi"], env={"A": "b"}):
        unread = told(place, seen)
    assert (unread["net"], unread["env"]) == ({"relay": dialled.PORT}, {"A": "b"})


@pytest.mark.parametrize("older", [True])
def test_an_agent_of_an_older_release_is_refused_what_it_does_not_know(
    create: Callable[..., Sandbox], place: Path
) -> None:
    with pytest.raises(Refused, match=r"is of an older release.*agentd image build --force"):
        create(net=["read api.example.com/v1/*"])
    assert places(place) == set()
    with create(net=["pypi"]):
        assert refused(*places(place)) == (NXDOMAIN, True)
