"""Folders of the host that a sandbox is given: what was asked for, or a refusal with a way out."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agentd import InvalidInput, Refused, Sandbox
from agentd.testing.walls.claims import granted

Make = Callable[..., Sandbox]


@pytest.fixture
def project(folder: Path) -> Path:
    """A directory of the caller's: a file, a subdirectory, a link."""
    (folder / "file").write_text("host\n")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").write_text("deep\n")
    (folder / "link").symlink_to("file")
    return folder


def test_a_workspace_is_the_hosts_directory(make: Make, project: Path) -> None:
    sandbox = granted(make, workspace=project)
    assert sandbox.run("cat file sub/deep link").text == "host\ndeep\nhost\n"
    assert sandbox.run("echo new > made; rm file; mv sub/deep moved").exit_code == 0
    assert (project / "made").read_text() == "new\n"
    assert (project / "moved").read_text() == "deep\n"
    assert not (project / "file").exists()
    # What is made inside belongs to the directory's owner outside.
    assert (project / "made").stat().st_uid == project.stat().st_uid


def test_a_read_only_workspace(make: Make, project: Path) -> None:
    sandbox = granted(make, workspace=f"{project}:ro")
    assert sandbox.run("cat file").text == "host\n"
    for script in ("echo x > file", "touch new", "rm file", "chmod 777 file", "mkdir d"):
        assert sandbox.run(script).exit_code != 0, script
    assert sorted(os.listdir(project)) == ["file", "link", "sub"]
    assert (project / "file").read_text() == "host\n"


def test_mounts_at_places_of_their_own(make: Make, project: Path) -> None:
    (project / "rw").mkdir()
    sandbox = granted(
        make,
        mounts=[f"{project}:/data", f"{project}/rw:/srv/deep/rw:rw", f"{project}/file:/opt/one"],
    )
    assert sandbox.run("cat /data/file /opt/one").text == "host\nhost\n"
    assert sandbox.run("echo in > /srv/deep/rw/made").exit_code == 0
    assert (project / "rw" / "made").read_text() == "in\n"
    assert sandbox.run("touch /data/x").exit_code != 0
    assert sandbox.run("echo x > /opt/one").exit_code != 0
    assert set(sandbox.enforcement) >= {"mount /data", "mount /srv/deep/rw", "mount /opt/one"}


def test_copy_on_write_lists_and_applies(make: Make, project: Path) -> None:
    sandbox = granted(make, workspace=f"{project}:cow")
    script = (
        "echo changed >> file; rm sub/deep; mkdir -p new/dir; echo made > new/dir/file;"
        "ln -s /etc/passwd new/link; chmod 750 new/dir"
    )
    assert sandbox.run(script).exit_code == 0
    assert (project / "file").read_text() == "host\n"
    assert (project / "sub" / "deep").exists()
    assert sandbox.changes() == (
        "M file",
        "A new/",
        "A new/dir/",
        "A new/dir/file",
        "A new/link",
        "D sub/deep",
    )
    sandbox.apply()
    assert (project / "file").read_text() == "host\nchanged\n"
    assert not (project / "sub" / "deep").exists()
    assert (project / "new" / "dir" / "file").read_text() == "made\n"
    assert os.readlink(project / "new" / "link") == "/etc/passwd"
    assert (project / "new" / "dir").stat().st_mode & 0o777 == 0o750


def test_a_directory_that_was_replaced(make: Make, project: Path) -> None:
    sandbox = granted(make, workspace=f"{project}:cow")
    assert sandbox.run("rm -r sub && mkdir sub && echo n > sub/new").exit_code == 0
    assert set(sandbox.changes()) == {"A sub/new", "D sub/deep"}
    sandbox.apply()
    assert os.listdir(project / "sub") == ["new"]


def test_a_directory_within_one_that_was_replaced(make: Make, project: Path) -> None:
    """The kernel marks the outer one alone as new."""
    (project / "sub" / "in").mkdir()
    (project / "sub" / "in" / "old").write_text("host")
    sandbox = granted(make, workspace=f"{project}:cow")
    assert sandbox.run("rm -r sub && mkdir -p sub/in && echo n > sub/in/new").exit_code == 0
    assert set(sandbox.changes()) == {"A sub/in/new", "D sub/in/old", "D sub/deep"}
    sandbox.apply()
    assert os.listdir(project / "sub") == ["in"]
    assert os.listdir(project / "sub" / "in") == ["new"]


def test_copy_on_write_that_is_dropped_changes_nothing(make: Make, project: Path) -> None:
    sandbox = granted(make, workspace=f"{project}:cow")
    assert sandbox.run("rm -rf ./* && echo x > y").exit_code == 0
    sandbox.close()
    assert sorted(os.listdir(project)) == ["file", "link", "sub"]
    assert (project / "file").read_text() == "host\n"


def test_no_overlay_no_changes(sandbox: Sandbox) -> None:
    with pytest.raises(Refused):
        sandbox.changes()
    assert sandbox.run("echo on").text == "on\n"


def test_a_folder_that_is_not_there_is_refused(make: Make, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="gone"):
        make(workspace=folder / "gone")
