"""Two operations on one sandbox at once: a daemon that was killed amid the first leaves that to its
supervisor, and the next daemon asks for the second. And an end, which cuts into any."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd import Sandbox
from agentd.model.errors import AgentdError
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager
from agentd.sandbox.supervisor import client, remote

MANY = 5_000
FILL = "mkdir a b c; head -c 128M /dev/zero | tr '\\0' x > b/large"
# The first and the last that a snapshot comes to: never more than one apart.
COUNT = """
import os
n = 0
while True:
    n += 1
    for place in ("a", "c"):
        with open(f"{place}/new", "w") as file:
            file.write(str(n))
        os.rename(f"{place}/new", f"{place}/n")
"""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[client.SupervisorLink]:
    link = client.connect(str(tmp_path / "s"), lambda *_: None)
    yield link
    with contextlib.suppress(AgentdError):
        link.ask("shutdown")
        link.lost.wait(60)
    link.close()


@pytest.fixture
def busy(link: client.SupervisorLink) -> Iterator[SandboxHandle]:
    """Its files change all the time."""
    manager = Manager(load=remote.loader(link))
    handle = manager.create(SandboxSpec())
    handle.wall.renew(None)  # type: ignore[attr-defined]
    if why := getattr(handle.wall, "lacks", {}).get("pause"):
        manager.close()
        pytest.skip(why)
    count = f"setsid python3 -c '{COUNT}' >/dev/null 2>&1 & until [ -e c/n ]; do sleep 0.01; done"
    for script in (FILL, count):
        end, *_ = handle.guest.run(ExecRequest(("sh", "-c", script), cwd="/workspace"))
        assert end.exit_code == 0
    yield handle
    manager.close()


def counts(folder: str) -> tuple[int, int]:
    """What was kept of both files."""
    found, path = {}, list[bytes]()
    with (
        open(f"{folder}/{kept.ENTRIES}", "rb") as entries,
        open(f"{folder}/{kept.CONTENT}", "rb") as content,
    ):
        for entry in kept.read(entries):
            del path[entry.depth - 1 :]
            path.append(entry.name)
            found[b"/".join(path)] = content.read(sum(length for _, length in entry.data))
    return int(found[b"w/a/n"]), int(found[b"w/c/n"])


def test_of_two_snapshots_at_once_each_is_of_one_moment(
    link: client.SupervisorLink, busy: SandboxHandle, tmp_path: Path
) -> None:
    asked, folders = [], [str(tmp_path / name) for name in ("one", "two")]
    for folder in folders:
        os.mkdir(folder, 0o700)
        asked.append(link.begin("snapshot", id=_id(busy), folder=folder))
    for each in asked:
        each.result()
    for first, last in map(counts, folders):
        assert 0 <= first - last <= 1, (first, last)


def test_one_that_is_paused_amid_a_snapshot_stays_so(
    link: client.SupervisorLink, busy: SandboxHandle, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    folder.mkdir(0o700)
    asked = link.begin("snapshot", id=_id(busy), folder=str(folder))
    while not (folder / kept.ENTRIES).exists():
        time.sleep(0.001)
    link.ask("pause", id=_id(busy))
    asked.result()  # which was under way, as that takes a while
    assert [held.paused for held in remote.held(link)] == [True]
    before = busy.wall.usage()["cpu_usec"]
    time.sleep(0.5)
    assert busy.wall.usage()["cpu_usec"] - before < 50_000, "it runs"


def _id(handle: SandboxHandle) -> Any:
    return handle.wall.save()["wall"]


def test_what_is_applied_is_applied_whole_though_the_sandbox_is_ended(tmp_path: Path) -> None:
    """And nothing of another sandbox, which has the numbers of its descriptors by then."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    box = Sandbox.create(backend="linux", workspace=f"{tmp_path}/one:cow", embedded=True)
    box.run(f"mkdir m; cd m; for i in $(seq {MANY}); do echo $i > $i; done", check=True)
    failed: list[BaseException] = []

    def apply() -> None:
        try:
            box.apply()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=apply)
    thread.start()
    while thread.is_alive() and not any(place.endswith("/u") for place in _opened()):
        time.sleep(0.001)
    box.close()
    with Sandbox.create(backend="linux", workspace=f"{tmp_path}/other:cow", embedded=True) as other:
        other.run("echo mine > b", check=True)
        thread.join()
    assert not failed
    assert len(os.listdir(tmp_path / "one" / "m")) == MANY
    assert not os.listdir(tmp_path / "other")


def _opened() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found
