"""What ``agentd doctor`` says of the machine beside the backends' own findings."""

import os
import re
from pathlib import Path

import pytest

from agentd.daemon import doctor


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH; and no image."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_monitors_are_named_with_their_versions(path: Path) -> None:
    program(path, "firecracker", "echo Firecracker v1.16.1; echo and more")
    program(path, "jailer", "echo broken >&2; exit 3")
    machine = doctor.machine()
    assert machine["firecracker"] == f"{path}/firecracker: Firecracker v1.16.1"
    assert machine["jailer"] == f"{path}/jailer: broken"
    assert machine["qemu"] == ""


@pytest.mark.parametrize("body", ["exit 3", "printf '\\033[2J'"])
def test_what_a_monitor_says_is_made_safe(path: Path, body: str) -> None:
    program(path, "jailer", body)
    said = str(doctor.machine()["jailer"])
    assert said.isprintable()
    assert said in (f"{path}/jailer: exit code 3", f"{path}/jailer: \\x1b[2J")


def test_a_monitor_that_cannot_be_run_is_told(path: Path) -> None:
    (path / "jailer").write_text("#!/nonexistent\n")
    (path / "jailer").chmod(0o755)
    assert "No such file" in str(doctor.machine()["jailer"])


def test_kvm_and_the_image_come_with_what_mends_them(path: Path) -> None:
    machine = doctor.machine()
    assert bool(machine["kvm_fix"]) != machine["kvm"]
    assert "agentd image build" in str(machine["image"])


def test_it_says_how_many_default_sandboxes_fit():
    fit = str(doctor.machine()["default_sandboxes_at_once"])
    assert "by memory, if each takes all it may" in fit
    counts = {name: int(n) for n, name in re.findall(r"(\d+) by (open files|memory|user ids)", fit)}
    names = {"open files", "memory", "user ids"} if os.getuid() == 0 else {"open files", "memory"}
    assert counts.keys() == names
    assert counts["open files"] >= 4  # one holds a quarter at most
    assert counts["memory"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30


@pytest.mark.root
def test_ids_that_somebody_else_has_are_told(monkeypatch, tmp_path):
    from agentd.sandbox.backends import identity

    subuid = tmp_path / "subuid"
    subuid.write_text("nobody:100000:65536\nalice:2000065536:65536\n")
    monkeypatch.setattr(identity, "SUBORDINATE", (str(subuid),))
    monkeypatch.setattr(identity, "_range", identity.Range())
    assert "'alice': set ids.start" in str(doctor.machine()["user_ids"])
    subuid.write_text("nobody:100000:65536\n")
    assert str(doctor.machine()["user_ids"]).startswith("2000000000 to ")
