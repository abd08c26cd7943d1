"""As root, folders of a file system that takes no map of owners, as that of every container."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contained import CONTAINER, with_capabilities
from tests.security.daemons import Daemon

from agentd.linux.kernel import KERNEL

pytestmark = pytest.mark.root

ROOTS = pytest.mark.parametrize(
    "prefix", [[], with_capabilities(*CONTAINER)], ids=["root", "container"]
)
CHANGE = "cat secret; echo new >> old; echo made > sub/made; rm link; chmod 700 tool"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An overlay, in a place that only root may reach."""
    lower, upper, work, there = (tmp_path / name for name in ("lower", "upper", "work", "there"))
    for path in (lower, upper, work, there, lower / "sub"):
        path.mkdir()
    (lower / "old").write_text("old\n")
    (lower / "secret").write_text("secret\n")
    (lower / "secret").chmod(0o600)
    (lower / "tool").write_text("#!/bin/sh\n")
    (lower / "tool").chmod(0o755)
    (lower / "link").symlink_to("old")
    (lower / "sub/file").write_text("file\n")
    (lower / "of-another").write_text("of another\n")
    (lower / "of-another").chmod(0o600)
    os.chown(lower / "of-another", 12345, 12345)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    KERNEL.mount("overlay", str(there), "overlay", 0, options)
    try:
        yield there
    finally:
        KERNEL.umount(str(there))


def _run(prefix: list[str], *words: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "agentd", "run", "--backend", "linux", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=kept,
        timeout=300,
        check=False,
    )


def _result(prefix: list[str], *words: str) -> Any:
    done = _run(prefix, "--json", *words)
    assert done.returncode < 125 and done.stdout, done.stderr
    return json.loads(done.stdout)


@ROOTS
def test_to_be_written_it_is_refused_with_its_type_and_the_ways_out(
    folder: Path, prefix: list[str]
) -> None:
    for words in (["-w", str(folder)], ["--mount", f"{folder}:/data:rw"]):
        done = _run(prefix, *words, "--", "true")
        assert done.returncode == 125
        for said in (str(folder), "overlay", "volume", ":cow", "--apply", "ordinary user"):
            assert said in done.stderr, said


@ROOTS
def test_to_be_read_it_is_a_copy_where_not_everybody_may_read_it(
    folder: Path, prefix: list[str]
) -> None:
    found = _result(prefix, "-w", f"{folder}:ro", "--", "sh", "-c", "cat secret link; echo > old")
    assert found["stdout"] == "secret\nold\n"
    assert "Read-only file system" in found["stderr"]
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert "a copy of 7 files" in told and "overlay" in told


@ROOTS
def test_what_its_owner_may_not_read_is_left_out_and_told(folder: Path, prefix: list[str]) -> None:
    found = _result(prefix, "-w", f"{folder}:ro", "--", "ls", "of-another")
    assert "No such file" in found["stderr"]
    told = found["enforcement"]["mount /workspace"]["detail"]
    assert "1 that its owner may not read are left out" in told


@ROOTS
def test_a_file_and_a_folder_elsewhere(folder: Path, prefix: list[str]) -> None:
    mounts = ["--mount", f"{folder}/secret:/data/s:ro", "--mount", f"{folder}/sub:/opt/sub:ro"]
    script = "cat /data/s /opt/sub/file; echo > /data/s || echo > /opt/sub/x"
    found = _result(prefix, *mounts, "--", "sh", "-c", script)
    assert found["stdout"] == "secret\nfile\n"
    assert found["stderr"].count("Read-only file system") == 2


@ROOTS
def test_copy_on_write_changes_are_seen_and_written_to_the_host(
    folder: Path, prefix: list[str]
) -> None:
    done = _run(prefix, "-w", f"{folder}:cow", "--", "sh", "-c", CHANGE)
    assert done.stdout == "secret\n"
    assert (folder / "old").read_text() == "old\n"
    done = _run(prefix, "-w", f"{folder}:cow", "--apply", "--", "sh", "-c", CHANGE)
    said = [line.strip() for line in done.stderr.splitlines()[1:]]
    assert said == ["D link", "M old", "A sub/made", "M tool"]
    assert (folder / "old").read_text() == "old\nnew\n"
    made = os.stat(folder / "sub/made")
    assert (made.st_uid, made.st_gid) == (0, 0)
    assert os.stat(folder / "tool").st_mode & 0o777 == 0o700
    assert not os.path.lexists(folder / "link")
    assert (folder / "of-another").read_text() == "of another\n"


def test_what_its_owner_may_not_write_is_not_applied(folder: Path) -> None:
    """In a copy all is the sandbox's; on the host another's folder stays as it is."""
    for path, owner in ((folder, 1000), (folder / "old", 1000), (folder / "sub", 12345)):
        os.chown(path, owner, owner)
    words = ["-w", f"{folder}:cow", "--apply", "--", "sh", "-c"]
    done = _run([], *words, "echo new >> old; echo made > sub/made")
    assert done.returncode == 125
    assert "sub/ may not be written here" in done.stderr
    assert (folder / "old").read_text() == "old\n"
    assert not (folder / "sub/made").exists()
    assert _run([], *words, "echo new >> old").returncode == 0
    assert (folder / "old").read_text() == "old\nnew\n"
    os.chown(folder, 0, 0)  # who may write everywhere
    assert _run([], *words, "echo made > sub/made").returncode == 0
    assert (folder / "sub/made").stat().st_uid == 0


def test_a_copy_is_bounded_by_the_disk_and_leaves_all_of_that(folder: Path) -> None:
    (folder / "large").write_bytes(os.urandom(3 << 20))
    done = _run([], "-w", f"{folder}:cow", "--disk", "2M", "--", "true")
    assert done.returncode == 2
    assert "over 2 MiB" in done.stderr and "--disk" in done.stderr and "overlay" in done.stderr
    script = "head -c 3500000 /dev/zero > more && rm large && stat -c %s more"
    done = _run([], "-w", f"{folder}:cow", "--disk", "4M", "--", "sh", "-c", script)
    assert done.stdout == "3500000\n", done.stderr


def test_what_everybody_may_read_is_not_copied_however_large(folder: Path) -> None:
    with open(folder / "sub/large", "wb") as file:
        file.write(os.urandom(3 << 20))
    words = ["-w", f"{folder}/sub:ro", "--disk", "1M", "--", "stat", "-c", "%s", "large"]
    found = _result([], *words)
    assert found["stdout"] == f"{3 << 20}\n"
    assert "as everybody may read it" in found["enforcement"]["mount /workspace"]["detail"]


def test_mounts_beneath_it_are_left_out(folder: Path) -> None:
    KERNEL.mount("tmpfs", str(folder / "sub"), "tmpfs", 0, "mode=0755")
    try:
        (folder / "sub/hidden").write_text("x")
        for mode in ("ro", "cow"):
            assert _result([], "-w", f"{folder}:{mode}", "--", "ls", "sub")["stdout"] == "", mode
    finally:
        KERNEL.umount(str(folder / "sub"))


def test_it_is_so_at_a_daemon(folder: Path, tmp_path: Path) -> None:
    rules = f'[sandbox]\nmounts = ["{folder}"]\n'
    daemon = Daemon(tmp_path, rules)
    try:
        daemon.start()
        body = {"exec": {"cmd": ["cat", "/workspace/secret"]}}
        answer = daemon.ask("POST", "/v1/run", {**body, "sandbox": {"workspace": f"{folder}:cow"}})
        assert answer.status == 200 and answer.json["stdout"] == "secret\n", answer.body
        answer = daemon.ask("POST", "/v1/run", {**body, "sandbox": {"workspace": str(folder)}})
        assert answer.code == "refused" and "overlay" in answer.json["message"], answer.body
    finally:
        daemon.end()
