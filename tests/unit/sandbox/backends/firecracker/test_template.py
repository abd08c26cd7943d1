"""Machines that go on from the first one, on stand-ins: what they are told, and what goes wrong."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.model.limits import MIB, Limits
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.firecracker.backend import FirecrackerBackend
from agentd.sandbox.backends.firecracker.wall import FirecrackerWall
from agentd.sandbox.backends.vm.template import Templates
from agentd.sandbox.manager import connect

pytestmark = pytest.mark.root
SPEC = SandboxSpec(backend="firecracker", limits=Limits(memory=64 * MIB))


@pytest.fixture
def templates(place: Path) -> Iterator[Templates]:
    made = Templates(str(place / "templates"))
    yield made
    made.close()


@pytest.fixture
def launch() -> Iterator[Callable[..., FirecrackerWall]]:
    walls: list[FirecrackerWall] = []

    def launch(backend: FirecrackerBackend, **wanted: Any) -> FirecrackerWall:
        spec = SandboxSpec(backend="firecracker", limits=Limits(memory=64 * MIB, **wanted))
        walls.append(backend.launch(backend.plan(spec)))
        return walls[-1]

    yield launch
    for wall in walls:
        wall.kill()


def asked(wall: FirecrackerWall) -> list[str]:
    (path,) = Path(str(wall.save()["jail"])).glob("root/guest-*/asked")
    return [line.split()[0] for line in path.read_text().splitlines()]


def was_booted(wall: FirecrackerWall) -> bool:
    return os.path.exists(f"{wall.save()['jail']}/root/kernel")


def echo(wall: FirecrackerWall) -> bytes:
    guest = connect(wall)
    try:
        return guest.run(ExecRequest(("echo", "on")))[1]
    finally:
        guest.close()


def test_the_second_machine_is_not_booted(
    make_backend: Callable[..., FirecrackerBackend], launch: Any, templates: Templates
) -> None:
    backend = make_backend(templates=templates)
    walls = [launch(backend) for _ in range(3)]
    assert [was_booted(wall) for wall in walls] == [True, False, False]
    for wall in walls:
        assert asked(wall) == ["sys.setup"]  # each is told who it is, and before anything else
        assert wall.enforcement["identity"].enforced
        assert echo(wall) == b"on\n"
    assert len({wall.id for wall in walls}) == 3
    assert was_booted(launch(backend, cpus=2))  # another machine is another template
    again = make_backend(templates=Templates(templates.folder))
    assert not was_booted(launch(again))
    again.close()


def test_a_machine_from_a_template_is_snapshotted_and_restored(
    make_backend: Callable[..., FirecrackerBackend],
    launch: Any,
    templates: Templates,
    tmp_path: Path,
) -> None:
    backend = make_backend(templates=templates)
    launch(backend)
    wall = launch(backend)
    wall.snapshot(str(tmp_path))
    clone = backend.restore(backend.plan(SPEC), str(tmp_path))
    try:
        assert echo(clone) == echo(wall) == b"on\n"
    finally:
        clone.kill()


def test_a_template_that_is_not_taken_is_made_again(
    make_backend: Callable[..., FirecrackerBackend], launch: Any, templates: Templates
) -> None:
    backend = make_backend(templates=templates)
    launch(backend)
    backend = make_backend(templates=templates, exits={"/snapshot/load": 1})
    assert was_booted(launch(backend))
    assert not [name for name in os.listdir(templates.folder) if name.endswith(".state")]


def test_where_none_can_be_kept_machines_are_booted(
    make_backend: Callable[..., FirecrackerBackend], launch: Any, templates: Templates
) -> None:
    backend = make_backend(templates=templates, exits={"/snapshot/create": 1})
    for _ in range(2):
        wall = launch(backend)
        assert was_booted(wall)
        assert echo(wall) == b"on\n"


def test_a_release_whose_clones_could_not_be_reached_has_none(
    make_backend: Callable[..., FirecrackerBackend], launch: Any, templates: Templates
) -> None:
    backend = make_backend("1.16.0", templates=templates)
    assert was_booted(launch(backend))
    assert was_booted(launch(backend))
