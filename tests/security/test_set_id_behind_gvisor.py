"""Threat: a program with a set-id bit that gVisor sets on the host for a command.

Control: a seccomp filter on runsc and all that it starts, which no command reaches. gVisor's kernel
says of a change of mode that failed that it was done: so the agent and commands have the filter,
too, and their answer is an error. Each is left out in turn.
"""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, running
from tests.security.test_workspace_races import SET_ID

from agentd import InvalidInput, OperationFailed, Sandbox

pytestmark = [pytest.mark.needs("runsc"), pytest.mark.timeout(900)]

# What makes a file and its mode at once, what stands for such a bit, and a call of x32's.
MORE = """
os.umask(0)
said("mkdir", tried(os.mkdir, "folder", 0o6755))
said("folder", tried(os.chmod, "folder", 0o2755))
said("fifo", tried(os.mkfifo, "fifo", 0o6755))
said("xattr", tried(os.setxattr, "program", "security.capability",
                    struct.pack("=IIIII", 0x02000001, 1 << 21, 0, 0, 0)))
said("x32", ctypes.CDLL(None).syscall(0x40000000 | 39))
"""
# A mode of mkdir(2) has no such bits.
SILENT = {"mkdir": "None", "x32": "-1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    shared = tmp_path / "shared"
    shared.mkdir()
    return shared


def set_id(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.lstat().st_mode & 0o6000]


@pytest.mark.parametrize("user", ["sandbox", "root"])
@pytest.mark.parametrize("place", ["workspace", "mount"])
def test_none_is_set_on_the_host(
    sandbox: Callable[..., Any], folder: Path, place: str, user: str
) -> None:
    spec: dict[str, Any] = {"mounts": [f"{folder}:/tmp/shown:rw"]}
    spec = {"workspace": f"{folder}:rw"} if place == "workspace" else spec
    box = sandbox("gvisor", user=user, **spec)
    said = box.attack(SET_ID + MORE, cwd="/workspace" if place == "workspace" else "/tmp/shown")
    assert not set_id(folder), said
    assert said.pop("xattr") in {"EPERM", "ENOTSUP", "EOPNOTSUPP"}
    assert {name: said.pop(name) for name in SILENT} == SILENT
    answers = {name: "ENOSYS" if name.startswith("openat2") else "EPERM" for name in said}
    assert said == answers
    assert not [path for path in folder.iterdir() if "security.capability" in os.listxattr(path)]
    row = box.wall.enforcement["set_id"]
    assert row.enforced and "profile share" in row.detail


def test_the_host_refuses_what_gvisors_kernel_lets_pass(
    sandbox: Callable[..., Any], folder: Path
) -> None:
    box = sandbox("gvisor", without={"seccomp"}, workspace=f"{folder}:rw")
    said = box.attack(SET_ID + MORE, cwd="/workspace")
    assert "None" in {said[name] for name in ("chmod uid", "fchmod gid", "folder")}, said
    assert {path.name for path in folder.iterdir()} >= {"program", "folder"}
    assert not set_id(folder), said


def test_without_both_they_are_set(sandbox: Callable[..., Any], folder: Path) -> None:
    box = sandbox("gvisor", without={"seccomp", "set_id"}, workspace=f"{folder}:rw")
    said = box.attack(SET_ID + MORE, cwd="/workspace")
    assert {"program", "folder"} <= set(set_id(folder)), said
    assert not box.wall.enforcement["set_id"].enforced


def test_where_no_folder_is_written_they_are_set_and_stay_inside(
    sandbox: Callable[..., Any], folder: Path
) -> None:
    (folder / "kept").write_text("x")
    box = sandbox("gvisor", workspace=f"{folder}:cow")
    said = box.attack(SET_ID, cwd="/workspace")
    assert said["chmod uid"] == "None"
    box.wall.apply()
    assert (folder / "program").exists()
    assert not set_id(folder)
    assert "set_id" not in box.wall.enforcement


def test_the_agent_sets_none_by_the_sdk(folder: Path) -> None:
    (source := folder.parent / "source").mkdir()
    (source / "tool").write_text("#!/bin/sh\n")
    (source / "tool").chmod(0o4755)
    mount = f"{folder}:/workspace/m:rw"
    with Sandbox.create(backend="gvisor", embedded=True, mounts=[mount]) as box:
        with pytest.raises(OperationFailed, match="not permitted"):
            box.files.write("/workspace/m/id", b"x", mode=0o4755)
        with pytest.raises(InvalidInput, match="mode 1517 is out of range"):
            box.files.mkdir("/workspace/m/d", mode=0o2755)
        box.files.upload(source, "/workspace/m/copied")
        assert box.run("cat /workspace/m/copied/tool", check=True).text == "#!/bin/sh\n"
    assert (folder / "copied" / "tool").stat().st_mode & 0o7777 == 0o755
    assert not set_id(folder)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def test_the_agent_sets_none_over_rest(daemon: Daemon, folder: Path) -> None:
    mount = f"{folder}:/workspace/m:rw"
    id_ = daemon.sandbox(backend="gvisor", mounts=[mount])
    files = f"/v1/sandboxes/{id_}/files"
    refused = daemon.ask("PUT", f"{files}?path=/workspace/m/id&mode=4755", b"x")
    assert refused.status == 403, refused.body
    assert daemon.ask("PUT", f"{files}?path=/workspace/m/id&mode=755", b"x").status == 200
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("tool")
        member.mode = 0o6755
        archive.addfile(member)
    daemon.ask("PUT", f"{files}/tar?path=/workspace/m", packed.getvalue())
    daemon.ask("DELETE", f"/v1/sandboxes/{id_}")
    assert {path.name for path in folder.iterdir()} == {"id", "tool"}
    assert not set_id(folder)
