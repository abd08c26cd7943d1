"""Walls that others bring: installed as distributions, found by their entry point, and judged,
chosen and reported on as ours are."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import running

PAGE = (Path(__file__).resolve().parents[2] / "docs/walls.md").read_text()
AIR = """
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.process import HostBackend

class Air(HostBackend):
    name = "air"
    level = IsolationLevel.{level}
"""
# Which says of itself that it has all that it has not.
LIAR = """
from agentd.model.enforcement import Control
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.process import HostBackend

CLAIMED = ("userspace_kernel", "mount_namespace", "pid_namespace", "network", "seccomp")

class Liar(HostBackend):
    name = "liar"
    level = IsolationLevel.USERSPACE_KERNEL

    def launch(self, plan):
        wall = super().launch(plan)
        held = {name: Control("default", True, "so it says") for name in CLAIMED}
        wall.enforcement = {**wall.enforcement, **held}
        return wall
"""
# A good one, a level above the one that it is made of.
KERNEL = """
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.linux.backend import LinuxBackend

class Kernel(LinuxBackend):
    name = "kernel"
    level = IsolationLevel.USERSPACE_KERNEL
"""
SILENT = """
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.process import HostBackend

class Silent(HostBackend):
    name = "silent"
    level = IsolationLevel.NAMESPACE

    def launch(self, plan):
        raise ZeroDivisionError("it is broken")
"""
BROKEN = {
    "raises": "raise RuntimeError('no such luck')",
    "exits": "import sys; sys.exit(3)",
    "odd": "class Odd:\n    name = 'other'\n    level = 7\n",
    "plans": AIR.replace("air", "plans").replace("Air", "Plans").format(level="USERSPACE_KERNEL")
    + "    def plan(self, spec):\n        raise KeyError('plan')\n",
    "probes": AIR.replace("air", "probes").replace("Air", "Probes").format(level="NAMESPACE")
    + "    def probe(self):\n        raise KeyError('probe')\n",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """A distribution with one wall, on the path of every Python that is started from here on."""
    before = os.environ.get("PYTHONPATH")
    path = f"{tmp_path}:{before}" if before else str(tmp_path)
    monkeypatch.setenv("PYTHONPATH", path)

    def made(name: str, source: str) -> None:
        module = f"{name}_wall"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        kind = name.capitalize()
        (info / "entry_points.txt").write_text(f"[agentd.backends]\n{name} = {module}:{kind}\n")

    return made


def agentd(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def selftested(*names: str) -> tuple[int, Any]:
    words = [word for name in names for word in ("--backend", name)]
    ran = agentd("selftest", "--json", *words)
    return ran.returncode, json.loads(ran.stdout)


@pytest.mark.parametrize("level", ["PROCESS", "NAMESPACE", "USERSPACE_KERNEL", "MICROVM"])
def test_a_wall_of_air_fails_whatever_level_it_says_it_has(
    install: Callable[[str, str], None], level: str
) -> None:
    install("air", AIR.format(level=level))
    code, report = selftested("air")
    assert code == 1 and not report["passed"]
    (backend,) = report["backends"]
    through = [row["name"] for row in backend["attacks"] if row["verdict"] == "got through"]
    assert "read a host file that everybody may read" in through
    assert "signal a host process" in through and len(through) > 5


def test_a_wall_that_says_what_is_not_so_fails(install: Callable[[str, str], None]) -> None:
    install("liar", LIAR)
    code, report = selftested("liar")
    rows = {row["name"]: row for row in report["backends"][0]["attacks"]}
    assert code == 1 and not report["passed"]
    # What its level would not promise it is held to, for it says that it has the control.
    assert rows["use keyrings"]["verdict"] == "got through"
    assert rows["use keyrings"]["controls"] == ["seccomp"]


def test_a_real_wall_of_another_name_and_level_passes(install: Callable[[str, str], None]) -> None:
    install("kernel", KERNEL)
    code, report = selftested("kernel")
    (backend,) = report["backends"]
    bad = [row for row in backend["attacks"] if row["verdict"] not in ("stopped", "works")]
    assert [row for row in bad if row["verdict"] != "not applicable"] == []
    assert code == 0 and report["passed"]
    rows = {row["name"]: row for row in backend["attacks"]}
    assert rows["use keyrings"]["verdict"] == "stopped"  # its report has seccomp
    assert "mount_namespace" in rows["read a private host file"]["controls"]


def test_one_that_cannot_build_a_sandbox_fails(install: Callable[[str, str], None]) -> None:
    install("silent", SILENT)
    code, report = selftested("silent")
    assert code == 1 and not report["passed"]
    ran = agentd("run", "--backend", "silent", "--", "true")
    assert ran.returncode == 125 and "backend silent cannot be used: ZeroDivision" in ran.stderr
    shown = agentd("selftest", "--backend", "silent").stdout
    assert "it stopped no attack: that is no wall" in shown and "it is broken" in shown


def test_the_cheapest_is_chosen_over_ours_and_others(install: Callable[[str, str], None]) -> None:
    install("kernel", KERNEL)
    ran = agentd("run", "--isolation", "userspace-kernel", "--json", "--", "true")
    assert json.loads(ran.stdout)["sandbox"]["backend"] == "kernel", ran
    ran = agentd("run", "--isolation", "namespace", "--json", "--", "true")
    assert json.loads(ran.stdout)["sandbox"]["backend"] == "linux", ran
    with running() as daemon:
        made = daemon.ask("POST", "/v1/sandboxes", {"isolation": "userspace-kernel"})
        assert made.status == 201 and made.json["backend"] == "kernel", made.body
        done = daemon.ask("POST", f"/v1/sandboxes/{made.json['id']}/exec", {"cmd": "echo in"})
        assert done.json["stdout"] == "in\n"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_told_and_skipped(install: Callable[[str, str], None], name: str) -> None:
    install(name, BROKEN[name])
    found = json.loads(agentd("doctor", "--json").stdout)["backends"]
    one = next(backend for backend in found if backend["name"] == name)
    if name != "plans":  # which is seen by whoever asks for one
        assert not one["usable"] and "cannot be" in one["blockers"][0]["what"]
        assert one["blockers"][0]["fix"] == "mend or uninstall the package it is in"
    # Behind all of ours that would do: what is left are the virtual machines, or nothing.
    words = ("run", "--isolation", "userspace-kernel", "--memory", "99T", "--", "true")
    told = agentd(*words).stderr
    assert "Traceback" not in told and "internal" not in told, told
    named = agentd("run", "--backend", name, "--", "true")
    assert named.returncode == 125 and name in named.stderr and "cannot be" in named.stderr
    assert agentd("run", "--", "true").returncode == 0
    code, report = selftested("landlock", name)
    assert code == 1 and not report["passed"]
    assert [b["usable"] for b in report["backends"]] == [True, name == "plans"]
    with running() as daemon:
        refused = daemon.ask("POST", "/v1/sandboxes", {"backend": name})
        assert refused.code == "unavailable" and "cannot be" in refused.body.decode()
        daemon.sandbox()
        listed = daemon.ask("GET", "/v1/backends").json
        assert next(b for b in listed if b["name"] == name)["usable"] is (name == "plans")


def test_the_wall_of_the_page_works(install: Callable[[str, str], None]) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert 'entry-points."agentd.backends"' in PAGE
    install("fence", source)
    assert "fence" in agentd("doctor").stdout
    ran = agentd("run", "--backend", "fence", "--", "echo", "behind it")
    assert ran.stdout == "behind it\n", ran
    code, report = selftested("fence")
    assert code == 0 and report["passed"]
