"""Pauses, snapshots and forks: proved by the walls that can, refused with a fix by the others."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.model.errors import Conflict, SandboxError
from agentd.model.principal import local
from agentd.sandbox import snapshots
from agentd.sandbox.abilities import PAUSE, SNAPSHOT
from agentd.sandbox.manager import Manager

# A secret that is in one process's memory alone, and how far it has counted.
_COUNTER = """
secret=$(od -An -N8 -tx8 /dev/urandom); n=0
trap 'echo $secret > told.part; echo $n >> told.part; mv told.part told' USR1
echo $$ > pid.part; mv pid.part pid
while :; do n=$((n+1)); sleep 0.2; done
"""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_IDENTITY = f"head -c 16 /dev/urandom | od -An -tx8; cat /etc/machine-id; cat {_BOOT_ID}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this process keeps snapshots; empty again when its sandboxes are closed."""
    shelf = tmp_path / "shelf"
    monkeypatch.setattr(
        "agentd.image.cache.own_folder", lambda name="": str(shelf) if name == "snapshots" else None
    )
    shelf.mkdir()
    yield shelf


@pytest.fixture
def pipeline(own_pipeline: Pipeline) -> Pipeline:
    """Not one that other tests have had: it knows where their snapshots were."""
    return own_pipeline


@pytest.fixture
def able(
    kind: Any, make: Callable[..., Sandbox], handle_of: Callable[[Sandbox], Any], cache: Path
) -> Sandbox:
    """A sandbox of a wall that can; one of another is skipped by its name."""
    if kind.over_http:
        pytest.skip("over HTTP: the wall is the daemon's")
    sandbox = make()
    if not _can(handle_of(sandbox).wall):
        pytest.skip(f"{sandbox.info.backend} has no snapshots: see the test of its refusal")
    return sandbox


def _can(wall: object) -> bool:
    able = SNAPSHOT.of(wall)
    # What keeps processes can stop them.
    assert able is None or able.fidelity == "files" or PAUSE.of(wall) is not None
    return able is not None


def _keeps_memory(sandbox: Sandbox, handle_of: Callable[[Sandbox], Any]) -> bool:
    return SNAPSHOT.of(handle_of(sandbox).wall).fidelity == "memory"  # type: ignore[union-attr]


def _until(sandbox: Sandbox, path: str) -> str:
    deadline = time.monotonic() + 120
    while (found := sandbox.run(["cat", path])).status != "ok":
        assert time.monotonic() < deadline, found.stderr
        time.sleep(0.05)
    return found.text


def _ask(sandbox: Sandbox) -> tuple[str, int]:
    """The counter's secret, and how far it is."""
    sandbox.run("rm -f told; kill -USR1 $(cat pid)", check=True)
    secret, count = _until(sandbox, "told").split()
    return secret, int(count)


def test_forks_go_on_from_one_moment_as_machines_of_their_own(
    able: Sandbox, handle_of: Callable[[Sandbox], Any], cache: Path
) -> None:
    able.run("echo kept > a; chmod 600 a; ln -s a b", check=True)
    able.run(["sh", "-c", f"setsid sh -c '{_quoted(_COUNTER)}' >/dev/null 2>&1 &"], check=True)
    _until(able, "pid")
    secret, before = _ask(able)
    with able.start("sleep 1000"), pytest.raises(Conflict, match="1 command runs"):
        able.fork(1)
    with ExitStack() as stack:
        copies = [stack.enter_context(copy) for copy in able.fork(2)]
        memory = _keeps_memory(able, handle_of)
        assert {box.fidelity for box in (able, *copies)} == {"memory" if memory else "files"}
        assert os.listdir(f"{cache}/{_own(cache)}") == ["lock"]
        for copy in copies:
            assert copy.run("stat -c %a a; cat b").text == "600\nkept\n"
            if _keeps_memory(able, handle_of):
                told, first = _ask(copy)
                assert told == secret and first >= before
                assert _ask(copy)[1] > first
            else:
                there = copy.run(["ls", "/proc"], check=True).text.split()
                assert len([name for name in there if name.isdigit()]) == 2, "besides agent and ls"
        if _keeps_memory(able, handle_of):
            machines = [able, *copies]
            identities = [machine.run(_IDENTITY, check=True).text.split() for machine in machines]
            for same in zip(*identities, strict=True):
                assert len(set(same)) == len(machines), identities
        copies[0].run("echo mine > a", check=True)
        copies[1].close()
        assert able.run("cat a").text == "kept\n"
        assert copies[0].run("cat a").text == "mine\n"
    assert _ask(able)[0] == secret


def test_nothing_runs_in_a_copy_before_it_is_a_machine_of_its_own(
    able: Sandbox, handle_of: Callable[[Sandbox], Any]
) -> None:
    """What ran before that would draw the same random numbers in every copy."""
    if not _keeps_memory(able, handle_of):
        pytest.skip(f"{able.info.backend} keeps no processes")
    loop = f"while read id < {_BOOT_ID}; do echo $id >> log; done"
    able.run(["sh", "-c", f"setsid sh -c '{loop}' >/dev/null 2>&1 &"], check=True)
    _until(able, "log")
    old = able.run(["cat", _BOOT_ID]).text
    with ExitStack() as stack:
        copies = [stack.enter_context(copy) for copy in able.fork(2)]
        able.close()  # an emulated one would take a processor from its copies
        # All begin with what the original wrote; what a copy added in its name differs in length.
        counts = [copy.run(f"grep -c {old.strip()} log").text for copy in copies]
        assert int(counts[0]) > 0
        assert len(set(counts)) == 1, counts
        for copy in copies:
            new = copy.run(["cat", _BOOT_ID]).text.strip()
            copy.run(f"while ! grep -q {new} log; do sleep 0.01; done", timeout=60, check=True)


def test_a_kept_snapshot_starts_in_another_process(
    able: Sandbox, handle_of: Callable[[Sandbox], Any], pipeline: Pipeline, folder: Path
) -> None:
    path = str(folder / "kept")
    able.run("echo kept > a", check=True)
    with able.snapshot(path) as taken:
        assert (taken.backend, taken.spec) == (able.info.backend, handle_of(able).spec)
    able.run("echo later > a", check=True)
    able.close()
    other = Pipeline(Manager())
    service = EmbeddedService(other)  # as another process has: nothing is shared with the first
    try:
        kept = snapshots.load(path)
        spec = build.restored_spec(kept.spec, env={"A": "1"})
        for _ in range(2):
            view = service.adopt(other.open(local("test"), spec, kept))
            with Sandbox(service, view) as copy:
                assert copy.run("cat a; echo $A").text == "kept\n1\n"
        largest = max(kept.manifest.files, key=lambda file: file.size)
        with open(f"{kept.state}/{largest.path}", "r+b") as file:
            file.seek(largest.size // 2)
            byte = file.read(1)
            file.seek(largest.size // 2)
            file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(SandboxError, match="is damaged"):
            other.open(local("test"), spec, kept)
    finally:
        other.manager.close()


def _own(cache: Path) -> str:
    (name,) = (name for name in os.listdir(cache) if name != "lock")
    return name


def _quoted(script: str) -> str:
    return script.replace("'", "'\\''")
