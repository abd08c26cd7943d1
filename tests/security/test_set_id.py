"""Threat: a program with a set-id bit that hands out its owner's rights on the host.

Controls: seccomp refuses the bits wherever a folder of the host's is mounted rw, on all that the
sandbox writes; elsewhere they may be set, and stay inside: what is applied or copied out has none.
Inside they give nothing: no_new_privs, nosuid.
"""

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.test_workspace_races import SET_ID

NONE_SET = {"EPERM", "ENOSYS"}
BITS = stat.S_ISUID | stat.S_ISGID
FOLDER = """
os.mkdir("shared")
said("folder", tried(os.chmod, "shared", 0o2775))
said("mode", oct(os.stat("shared").st_mode & 0o7777))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    tmp_path.chmod(0o755)
    yield tmp_path


@pytest.mark.parametrize("mode", ["", "ro", "cow"])
def test_where_nothing_of_the_host_is_written_the_bits_are_set(
    sandbox: Callable[..., Any], folder: Path, mode: str
) -> None:
    spec = {"mounts": [f"{folder}:/tmp/shown"]} if mode == "ro" else {}
    spec = {"workspace": f"{folder}:cow"} if mode == "cow" else spec
    box = sandbox("linux", **spec)
    said = box.attack(FOLDER, cwd="/workspace")
    assert said == {"folder": "None", "mode": "0o2775"}
    said = box.attack(SET_ID, cwd="/workspace")
    assert NONE_SET.isdisjoint(said.values()), said


@pytest.mark.parametrize("user", ["sandbox", "root"])
@pytest.mark.parametrize("place", ["workspace", "mount"])
def test_where_a_folder_is_written_they_are_refused_everywhere(
    sandbox: Callable[..., Any], folder: Path, place: str, user: str
) -> None:
    spec = {"mounts": [f"{folder}:/tmp/shown:rw"]}
    spec = {"workspace": f"{folder}:rw"} if place == "workspace" else spec
    box = sandbox("linux", user=user, **spec)
    for cwd in ("/workspace", "/tmp/shown" if place == "mount" else "/tmp"):
        said = box.attack(SET_ID, cwd=cwd)
        assert set(said.values()) == NONE_SET, (cwd, said)
    assert not [path for path in folder.rglob("*") if path.lstat().st_mode & BITS]


def test_they_are_not_copied_out(sandbox: Callable[..., Any]) -> None:
    box = sandbox("linux")
    box.attack(FOLDER + SET_ID, cwd="/workspace")
    packed = io.BytesIO(b"".join(box.guest.files.read_tar("/workspace")))
    with tarfile.open(fileobj=packed) as archive:
        modes = {os.path.basename(member.name): member.mode for member in archive}
    assert {"shared", "program"} <= modes.keys()
    assert not [name for name, mode in modes.items() if mode & BITS], modes


def test_they_are_not_applied(sandbox: Callable[..., Any], folder: Path) -> None:
    box = sandbox("linux", workspace=f"{folder}:cow")
    box.attack(FOLDER + SET_ID, cwd="/workspace")
    box.wall.apply()
    modes = {path.name: path.lstat().st_mode for path in folder.rglob("*")}
    assert {"shared", "program"} <= modes.keys()
    assert not [name for name, mode in modes.items() if mode & BITS], modes


# Version 2: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, effective for whoever runs it.
CAPABLE = """
open("capable", "w").close()
value = struct.pack("<5I", 0x02000001, 0x6, 0, 0, 0)
said("capable", tried(os.setxattr, "capable", "security.capability", value))
"""


@pytest.mark.root
@pytest.mark.parametrize("backend", ["linux", "oci"])
@pytest.mark.parametrize("place", ["workspace", "mount"])
def test_roots_file_capabilities_reach_no_folder_of_the_hosts(
    sandbox: Callable[..., Any], folder: Path, place: str, backend: str
) -> None:
    """What is root's inside is root's in the folder: the kernel would write them as the host's."""
    at = "/workspace" if place == "workspace" else "/tmp/shown"
    spec = {"mounts": [f"{folder}:{at}:rw"]}
    spec = {"workspace": f"{folder}:rw"} if place == "workspace" else spec
    said = sandbox(backend, user="root", **spec).attack(CAPABLE, cwd=at)
    assert said == {"capable": "EPERM"}
    assert not os.listxattr(folder / "capable")


@pytest.mark.root
def test_without_that_they_would(sandbox: Callable[..., Any], folder: Path) -> None:
    box = sandbox("linux", without={"capabilities"}, user="root", workspace=f"{folder}:rw")
    assert box.attack(CAPABLE, cwd="/workspace") == {"capable": "None"}
    assert os.listxattr(folder / "capable") == ["security.capability"]


@pytest.mark.root
def test_root_sets_them_where_no_folder_is_written(sandbox: Callable[..., Any]) -> None:
    said = sandbox("linux", user="root").attack(CAPABLE, cwd="/workspace")
    assert said == {"capable": "None"}


@pytest.mark.root
def test_inside_they_give_nothing(sandbox: Callable[..., Any]) -> None:
    """To root of a sandbox, which has many users: a program of another's."""
    script = (
        "cp /usr/bin/id own; chown 1234:1234 own; chmod 6755 own; ls -ln own; ./own -u; ./own -g"
    )
    ran = sandbox("linux", user="root").run(["sh", "-ec", script], cwd="/workspace").stdout.split()
    assert ran[0] == "-rwsr-sr-x" and ran[2] == "1234"
    assert ran[-2:] == ["0", "0"]
