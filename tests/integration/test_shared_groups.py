"""As root, a folder whose owner has files of other groups in it, as projects of several have."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root  # only root lends a folder of somebody else's
OWNER, GROUP, LARGE, OTHER = 1000, 2000, 3_000_000, 1001
CHANGE = (
    "for f in own group large shared/new; do echo x >> $f || exit 1; done; chmod 640 group; "
    "mkdir shared/folder && echo x > shared/folder/file && mv group moved"
)
#: What others own is theirs, however open it is.
CLOSED = (
    "for f in theirs roots open open-folder/new theirs-folder/mine; do "
    "sh -c 'echo x >> '$f 2>/dev/null && echo $f; done; chgrp 0 own; chgrp 2000 own; "
    "chmod g+s moved; chmod u+s own; exit 0"
)


@pytest.fixture
def project() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentd-project-") as name:
        top = Path(name)
        for folder in ("shared", "open-folder", "theirs-folder"):
            (top / folder).mkdir()
        for path in ("own", "group", "large", "theirs", "roots", "open", "theirs-folder/mine"):
            (top / path).write_text("host\n")
        for path, uid, gid, mode in (
            (".", OWNER, OWNER, 0o755),
            ("own", OWNER, OWNER, 0o644),
            ("group", OWNER, GROUP, 0o644),
            ("large", OWNER, LARGE, 0o644),
            ("shared", OWNER, GROUP, 0o2775),
            ("theirs", OTHER, OTHER, 0o644),
            ("roots", 0, 0, 0o644),
            ("open", OTHER, OTHER, 0o666),
            ("open-folder", OTHER, OTHER, 0o777),
            ("theirs-folder", OTHER, OTHER, 0o755),
            ("theirs-folder/mine", OWNER, OTHER, 0o444),
        ):
            os.chown(top / path, uid, gid)
            os.chmod(top / path, mode)
        yield top


def _run(*words: str) -> Any:
    argv = [sys.executable, "-m", "agentd", "run", "--json", "--backend", "linux", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def _owners(top: Path) -> dict[str, tuple[int, int, int]]:
    found = {str(path.relative_to(top)): path.stat() for path in top.rglob("*")}
    return {p: (s.st_uid, s.st_gid, stat.S_IMODE(s.st_mode)) for p, s in found.items()}


@pytest.mark.parametrize("mode", ["rw", "cow"])
def test_the_owners_files_of_other_groups_are_written_and_stay_theirs(
    project: Path, mode: str
) -> None:
    before = _owners(project)
    apply = ["--apply"] if mode == "cow" else []
    found = _run("-w", f"{project}:{mode}", *apply, "--", "sh", "-c", f"{CHANGE}; {CLOSED}")
    assert (found["exit_code"], found["stdout"]) == (0, ""), found["stderr"]
    refused = 2 if mode == "rw" else 0  # set-id bits, which --apply does not write
    assert found["stderr"].count("chgrp: ") == 2 and found["stderr"].count("chmod: ") == refused
    before["moved"] = (OWNER, GROUP if mode == "rw" else OWNER, 0o640)  # a new file, when applied
    del before["group"]
    before["shared/folder"] = (OWNER, GROUP, 0o2755)
    before["shared/new"] = before["shared/folder/file"] = (OWNER, GROUP, 0o644)
    assert _owners(project) == before
    for path in ("own", "moved", "large"):
        assert (project / path).read_text() == "host\nx\n"
    for path in ("theirs", "roots", "open", "theirs-folder/mine"):
        assert (project / path).read_text() == "host\n"


def test_what_is_copied_is_told_and_bounded(project: Path) -> None:
    found = _run("-w", f"{project}:cow", "--", "true")
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert "; 4 files and folders of other groups are copies, 8 KiB" in told
    (project / "group").write_bytes(os.urandom(2 << 20))
    words = ["-w", f"{project}:cow", "--disk", "1M", "--", "sh", "-c", "wc -c <group; echo x>>own"]
    found = _run(*words)
    assert (found["stdout"].strip(), found["exit_code"]) == (str(2 << 20), 0), found["stderr"]
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert "files of other groups cannot be changed" in told and "--disk" in told


def test_of_a_folder_mounted_beneath_nothing_is_copied(project: Path) -> None:
    """As nothing of it is seen; in a mount namespace that only the child sees."""
    script = (
        'mount -t tmpfs none "$1/shared" && echo secret > "$1/shared/f" && chown 1000:3 '
        '"$1/shared" "$1/shared/f" && shift && exec "$@"'
    )
    run = [sys.executable, "-m", "agentd", "run", "--backend", "linux", "-w", f"{project}:cow"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(project), *run, "--", "ls", "shared"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr
