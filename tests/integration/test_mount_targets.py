"""Where mounts may go: no spelling leads over the wall's own places; what has no place is told."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import running

from agentd import AgentdError, InvalidInput, Mount, Sandbox

TWO_SLASHES = ("//", "//etc", "//proc", "//usr", "//dev", "//sys/x", "//bin/x", "//.agentd")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inside").write_text("x")
    (tmp_path / "file").write_text("x")
    return tmp_path


def refused(**options: Any) -> AgentdError:
    with pytest.raises(InvalidInput) as told:
        Sandbox.create(embedded=True, **options).close()
    assert told.value.remediation
    return told.value


@pytest.mark.parametrize("target", TWO_SLASHES)
def test_two_slashes_are_no_way_around_what_is_the_walls(folder: Path, target: str) -> None:
    """POSIX has normpath leave them, and to Linux they are one."""
    assert "is not a plain absolute path" in refused(mounts=[f"{folder}/folder:{target}"]).message
    mount = Mount(f"{folder}/folder", target, "rw")  # type: ignore[arg-type]
    assert "is not a plain absolute path" in refused(mounts=[mount]).message


def test_nor_are_they_at_other_doors(folder: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agentd", "run", "--mount", f"{folder}/folder://etc", "--", "true"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 2 and "'//etc' is not a plain absolute path" in ran.stderr
    with running(f"[sandbox]\nmounts = ['/{folder}']\n") as daemon:
        for asked in ({"mounts": [f"{folder}:/{t}"]} for t in ("/etc", "/m")):
            told = daemon.ask("POST", "/v1/sandboxes", asked)
            assert told.status == 400 and b"is not a plain absolute path" in told.body
        made = daemon.ask("POST", "/v1/sandboxes", {"mounts": [f"/{folder}/folder:/m"]})
        assert made.status == 201, made.body


@pytest.mark.parametrize(
    ("what", "target", "why"),
    [
        ("folder", "/etc/hosts", "no folder goes where a file is: '/etc/hosts'"),
        ("folder", "/etc/hosts/x", "a file is on its way: '/etc/hosts/x'"),
        ("folder", "/var/run", "no folder goes where a link is: '/var/run'"),
        ("file", "/tmp", "no file goes where a folder is: '/tmp'"),
        ("file", "/home", "no file goes where a folder is: '/home'"),
    ],
)
def test_what_has_no_place_there_is_told_by_name(
    folder: Path, what: str, target: str, why: str
) -> None:
    assert why in refused(backend="linux", mounts=[f"{folder}/{what}:{target}"]).cause


def test_a_file_takes_the_place_of_a_link(folder: Path) -> None:
    for target in ("/etc/localtime", "/etc/os-release", "/etc/mtab"):
        with Sandbox.create(embedded=True, mounts=[f"{folder}/file:{target}"]) as sandbox:
            assert sandbox.run(["cat", target]).text == "x"


def test_names_that_no_file_can_have_are_refused_before_anything_is_made(folder: Path) -> None:
    source = f"{folder}/folder"
    for target in (f"/{'n' * 255}", "/a" * 256):
        with Sandbox.create(embedded=True, mounts=[f"{source}:{target}"]) as sandbox:
            assert sandbox.run(["ls", target]).text == "inside\n"
    for target in (f"/{'n' * 256}", f"/{'é' * 128}", "/a" * 257):
        assert "is too long" in refused(mounts=[f"{source}:{target}"]).message
    assert "is no path" in refused(mounts=[f"{source}:/\ud800"]).message
    assert "is no path" in refused(mounts=[f"{folder}/\ud800:/m"]).message


@pytest.mark.parametrize("members", [(5, "/m", "ro"), ("/tmp", 5, "ro"), ("/tmp", "/m", None)])
def test_a_mount_of_something_else_than_text_is_an_error_of_ours(members: Any) -> None:
    assert "has a member that is no text" in refused(mounts=[Mount(*members)]).message
