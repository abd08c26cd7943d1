"""An ordinary user's copy-on-write folder with files of other groups and owners, as a project that
several people share."""

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import NOBODY, OrdinaryUser

from agentd import Sandbox
from agentd.sandbox.backends.linux import foreign

pytestmark = pytest.mark.root  # only root can give files to others
OTHER = 54321


@pytest.fixture
def project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentd-project-") as name:
        top = Path(name)
        (top / "theirs").mkdir()
        (top / "mine").mkdir()
        for path in ("file", "theirs/file", "mine/file", "mine/theirs", "readable", "closed"):
            (top / path).write_text(f"{path}\n")
            (top / path).chmod(0o666)
        (top / "link").symlink_to("file")
        (top / "readable").chmod(0o644)
        (top / "closed").chmod(0o600)
        for path in (top, top / "file", top / "theirs", top / "theirs/file"):
            os.chown(path, NOBODY, OTHER)
        for path in (top / "mine", top / "mine/file"):
            os.chown(path, NOBODY, NOBODY)
        for path in (top / "mine/theirs", top / "readable", top / "closed"):
            os.chown(path, OTHER, OTHER)
        for path in (top, top / "theirs"):
            os.chmod(path, 0o2775)  # noqa: S103  as such folders are
        yield top


def _run(as_user: OrdinaryUser, project: Path, script: str, *words: str) -> Any:
    options = ("--json", "--backend", "linux", "-w", f"{project}:cow", *words)
    done = as_user.agentd("run", *options, "--", "sh", "-c", script)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def test_they_can_be_changed_and_the_changes_are_told_and_applied(
    as_user: OrdinaryUser, project: Path
) -> None:
    script = (
        "set -e; echo x >> file; echo x > theirs/new; rm theirs/file; mkdir theirs/folder; "
        "echo x >> mine/theirs; mv link other"
    )
    found = _run(as_user, project, script)
    assert found["exit_code"] == 0, found["stderr"]
    assert (project / "file").read_text() == "file\n"
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert "of other owners or groups are copies" in told
    done = as_user.agentd(
        *("run", "--backend", "linux", "-w", f"{project}:cow", "--apply", "--", "sh", "-c", script)
    )
    lines = [line.strip() for line in done.stderr.decode().splitlines()]
    assert [line for line in lines if line[1:2] == " "] == [
        "M file", "D link", "M mine/theirs", "A other", "D theirs/file", "A theirs/folder/",
        "A theirs/new",
    ]  # fmt: skip
    assert (project / "file").read_text() == "file\nx\n"
    assert not (project / "theirs/file").exists()
    assert stat.S_IMODE((project / "theirs").stat().st_mode) == 0o2775
    assert (project / "theirs/new").stat().st_gid == (project / "file").stat().st_gid == OTHER


def test_rights_are_those_that_the_caller_has(as_user: OrdinaryUser, project: Path) -> None:
    found = _run(as_user, project, "cat readable; echo x >> readable; cat closed")
    assert found["stdout"] == "readable\n"
    assert found["stderr"].count("Permission denied") == 2, found["stderr"]


def test_a_folder_with_nothing_foreign_has_no_copies(as_user: OrdinaryUser, project: Path) -> None:
    (project / "mine/theirs").unlink()
    found = _run(as_user, project / "mine", "echo x >> file")
    assert found["exit_code"] == 0
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert told == f"{project}/mine, the caller's own rights"


def test_too_much_of_it_is_told(as_user: OrdinaryUser, project: Path) -> None:
    (project / "file").write_bytes(os.urandom(2 << 20))
    found = _run(as_user, project, "echo x >> mine/file; cat file | wc -c", "--disk", "1M")
    assert found["stdout"].strip() == str(2 << 20), found["stderr"]
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert "cannot be changed" in told and "--disk" in told


def test_a_link_that_leads_out_is_not_followed(as_user: OrdinaryUser, project: Path) -> None:
    secret = as_user.home / "secret"
    secret.write_text("secret\n")
    secret.chmod(0o644)
    (project / "theirs/link").symlink_to(secret)
    os.chown(project / "theirs/link", OTHER, OTHER, follow_symlinks=False)
    found = _run(as_user, project, "readlink theirs/link; cat theirs/link")
    assert found["stdout"] == f"{secret}\n"


def test_a_folder_that_goes_away_meanwhile_is_no_error(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As builds remove them: while it is looked at, and while the layer is made."""
    for name in ("looked", "copied"):
        (project / name).mkdir()

    def removed(kind: type, gone: str) -> None:
        visit = kind.visit

        def visited(self: Any, above: int, parent: Any, name: str, depth: int) -> None:
            if name == gone:
                (project / name).rmdir()
            visit(self, above, parent, name, depth)

        monkeypatch.setattr(kind, "visit", visited)

    removed(foreign._Survey, "looked")
    removed(foreign._Layer, "copied")
    os.chown(project / "closed", NOBODY, OTHER)  # the owner's, of another group
    os.chown(project, NOBODY, NOBODY)
    with Sandbox.create(workspace=f"{project}:cow", embedded=True, backend="linux") as sandbox:
        assert sandbox.run("echo more >> closed; cat closed", check=True).text == "closed\nmore\n"
    assert not (project / "looked").exists() and not (project / "copied").exists()


def test_all_that_others_own_may_go_away_meanwhile(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the layer, which then is an empty one."""
    for path in (project, *project.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.chown(project / "closed", NOBODY, OTHER)
    make = foreign.make

    def made(*given: Any) -> None:
        (project / "closed").unlink()
        make(*given)

    monkeypatch.setattr(foreign, "make", made)
    with Sandbox.create(workspace=f"{project}:cow", embedded=True, backend="linux") as sandbox:
        assert sandbox.run("echo more >> file; cat file", check=True).text == "file\nmore\n"
    assert not (project / "closed").exists()
