"""What is refused says a way out that fits: by the SDK, the command line and a daemon."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, running

from agentd import CauseCode, Client, InvalidInput, NotFound, OperationFailed, Sandbox


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running('[sandbox]\nminimum = "none"\n') as made:
        yield made


@pytest.fixture(params=["here", "a daemon's"])
def where(request: pytest.FixtureRequest, daemon: Daemon) -> dict[str, Any]:
    return {"embedded": True} if request.param == "here" else {"url": daemon.url}


def test_a_port_where_nothing_listens(where: dict[str, Any]) -> None:
    with Sandbox.create(**where) as box:
        with pytest.raises(OperationFailed, match="port 9: Connection refused") as caught:
            box.ports.open(9)
        assert "have a server listen on 127.0.0.1:9 inside" in caught.value.remediation


def test_a_working_directory_that_is_not_there(where: dict[str, Any]) -> None:
    with Sandbox.create(**where) as box:
        cause = box.run(["true"], cwd="/nosuch").cause
    assert cause.code is CauseCode.SPAWN_FAILED
    assert cause.remediation.startswith("name a directory of the sandbox as the working directory")


@pytest.mark.parametrize(
    "backend",
    [
        *("linux", "landlock", "host"),
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=pytest.mark.needs("runsc")),
    ],
)
def test_a_workspace_that_is_no_directory(daemon: Daemon, backend: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    wanted = {"workspace": str(tmp_path / "file"), "backend": backend}
    for where in ({"embedded": True}, {"url": daemon.url}):
        with pytest.raises(InvalidInput, match="file' is not a directory") as caught:
            Sandbox.create(**wanted, **where)  # type: ignore[arg-type]
        assert caught.value.remediation == "give a directory"


def test_a_disk_on_which_nothing_fits(where: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="disk of 1 byte is too little") as caught:
        Sandbox.create(disk="1", **where)
    assert caught.value.remediation == "give at least 64 KiB"
    with Sandbox.create(disk="64K", **where) as box:
        assert box.run("echo x > file && cat file").text == "x\n"


def test_a_name_that_is_no_text(daemon: Daemon) -> None:
    for wanted in ({}, {"url": daemon.url}):
        with pytest.raises(InvalidInput, match="name is of type int, and takes text"):
            Sandbox.create(name=3, **wanted)  # type: ignore[arg-type]


def test_a_snapshot_knows_the_daemon_that_keeps_it(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url) as box:
        box.files.write("/workspace/kept", b"kept")
        kept = box.snapshot()
        assert kept.url == daemon.url
        box.kill()
    with kept, Sandbox.create(snapshot=kept) as again:
        assert again.url == daemon.url
        assert again.files.read("/workspace/kept") == b"kept"
        again.kill()
    with Sandbox.create(embedded=True) as box, box.snapshot() as own:
        assert own.url is None
        with Sandbox.create(snapshot=own) as again:
            assert again.url is None
    with Client(daemon.url) as client:
        assert [box.id for box in client.sandboxes.list()] == []


def agentd(*words: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "agentd", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_snapshot_that_is_not_there(daemon: Daemon) -> None:
    gone = "snp-0123456789abcdef"
    for name in (gone, "nosuch"):
        done = agentd("snapshot", "rm", "--url", daemon.url, name)
        assert done.returncode == 125 and "agentd snapshot ls" in done.stderr, done.stderr
    with Client(daemon.url) as client, pytest.raises(NotFound) as caught:
        client.snapshots.get(gone)
    assert "agentd snapshot ls" in caught.value.remediation


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuch.v1", "see agentd capability ls"),
        ("v1", "see agentd capability ls"),
        ("fs.raed.v1", "did you mean fs.read.v1"),
        ("shell_exec", "did you mean shell.exec.v1"),
        ("fs.read.v2", "did you mean fs.read.v1"),
    ],
)
def test_a_capability_that_is_not_there(name: str, said: str) -> None:
    done = agentd("call", "--embedded", name)
    assert done.returncode and said in done.stderr, done.stderr


def test_programs_that_are_not_in_the_table() -> None:
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-m", "tests.compat", "--only", "nosuch"]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no row has 'nosuch' in its name" in done.stdout
