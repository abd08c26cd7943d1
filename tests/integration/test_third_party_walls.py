"""Walls that others bring: installed as distributions, found by their entry point, and judged,
chosen and reported on as ours are."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import running
from tests.supervised import supervised

from agentd.model.errors import BackendLost
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.backends.oci import runtimes
from agentd.sandbox.backends.process import HostBackend
from agentd.sandbox.supervisor.remote import RemoteBackend, RemoteWall

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
# Good, but for its level, a step above what it is made of.
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
# One that has at once what of ours only virtual machines and only overlays have, and takes images.
BOTH = """
import os
from msgspec.structs import replace
from agentd.model.isolation import IsolationLevel
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.sandbox.manager import connect

class Kept:
    fidelity = "files"

    def __init__(self, wall):
        self._wall = wall
        self.lacks = {"pause": "it keeps files alone"}

    def __getattr__(self, name):
        return getattr(self._wall, name)

    def _files(self):
        guest = connect(self)
        try:
            names = sorted(entry.name for entry in guest.files.list("/workspace"))
            return {name: guest.files.read(f"/workspace/{name}") for name in names}
        finally:
            guest.close()

    def changes(self):
        return tuple(f"A {name}" for name in self._files())

    def apply(self):
        self.snapshot(APPLIED)

    def snapshot(self, folder):
        for name, data in self._files().items():
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)

class Both(LinuxBackend):
    name = "both"
    images = True
    abilities = frozenset({"changes", "snapshot", "fork"})

    def plan(self, spec):  # the images are its own
        return super().plan(replace(spec, image="default"))

    def launch(self, plan):
        return Kept(super().launch(plan))

    def restore(self, plan, folder):
        wall = self.launch(plan)
        guest = connect(wall)
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                guest.files.write(f"/workspace/{name}", file.read())
        guest.close()
        return wall
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
# Which end the program that asks them, as if all were well, or give it nothing.
EXITS = {
    "probing": "    def probe(self):\n        raise SystemExit(0)\n",
    "planning": "    def plan(self, spec):\n        raise SystemExit(0)\n",
    "launching": "    def launch(self, plan):\n        raise SystemExit(0)\n",
    "listing": "    def requirements(self):\n        raise SystemExit(0)\n",
    "nothing": "    def probe(self):\n        return None\n",
    "planless": "    def plan(self, spec):\n        return None\n",
    "wallless": "    def launch(self, plan):\n        return None\n",
    "closing": "    def close(self):\n        raise SystemExit(0)\n",
}
ODD = ("nothing", "planless", "wallless")
# Of which the wall is to blame, and not the backend; ``kill`` says so, for who waits for it.
SPITEFUL = (
    AIR.replace("air", "spiteful").replace("Air", "Spiteful").format(level="NAMESPACE")
    + """
    def launch(self, plan):
        wall = super().launch(plan)

        def fail(*_):
            raise KeyError("of mine")

        def kill(before=wall.kill):
            print("killed", flush=True)
            before()

        for name in ("pause", "resume", "snapshot", "begin_kill", "end", "usage"):
            setattr(wall, name, fail)
        wall.fidelity, wall.lacks, wall.kill = "files", {}, kill
        wall.first_process = lambda: None
        return wall
"""
)
# Which cannot even be asked whether it ends early.
GRUDGING = (
    AIR.replace("air", "grudging").replace("Air", "Grudging").format(level="NAMESPACE")
    + """
    def launch(self, plan):
        wall = super().launch(plan)

        def kill(before=wall.kill):
            print("killed", flush=True)
            before()

        wall.kill, wall.counters = kill, lambda: None
        type(wall).begin_kill = property(lambda self: {}["of mine"])
        return wall
"""
)
GRUDGED = """
from agentd import Sandbox, SandboxError
box = Sandbox.create(backend="grudging")
try:
    box.run("exit 3")
except SandboxError as error:
    print(error.code, error.message, sep="; ")
box.close()
"""
SPITED = """
from agentd import Sandbox, SandboxError
box = Sandbox.create(backend="spiteful")
for what in (box.pause, box.snapshot, box.close):
    try:
        what()
    except SandboxError as error:
        print(error.code, error.message, error.remediation, sep="; ")
"""
NO_WALLS = {
    "unheld": "wall.enforcement = None",
    "misheld": "wall.enforcement = {'network': True}",
    "bare": "wall = type('Bare', (), {'enforcement': {}, 'kill': wall.kill})()",
    "lacking": "type(wall).lacks = property(lambda self: 1 / 0)",
    "mislacking": "wall.lacks = None",
}


class Near(HostBackend):
    name = "near"


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
        timeout=500,
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
    install("kernel", KERNEL.replace("USERSPACE_KERNEL", "PROCESS"))
    code, report = selftested("kernel")
    (backend,) = report["backends"]
    bad = [row for row in backend["attacks"] if row["verdict"] not in ("stopped", "works")]
    assert [row for row in bad if row["verdict"] != "not applicable"] == []
    assert code == 0 and report["passed"]
    rows = {row["name"]: row for row in backend["attacks"]}
    assert rows["use keyrings"]["verdict"] == "stopped"  # its report has seccomp
    assert "landlock" in rows["read a private host file"]["controls"]


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
    first = "kernel" if runtimes.find("runsc") is None else "gvisor"  # on a level ours come first
    assert json.loads(ran.stdout)["sandbox"]["backend"] == first, ran
    ran = agentd("run", "--isolation", "namespace", "--json", "--", "true")
    assert json.loads(ran.stdout)["sandbox"]["backend"] == "linux", ran
    with running("[sandbox]\nbackends = ['linux', 'kernel', 'qemu']\n") as daemon:
        made = daemon.ask("POST", "/v1/sandboxes", {"isolation": "userspace-kernel"})
        assert made.status == 201 and made.json["backend"] == "kernel", made.body
        done = daemon.ask("POST", f"/v1/sandboxes/{made.json['id']}/exec", {"cmd": "echo in"})
        assert done.json["stdout"] == "in\n"


def test_one_wall_lists_its_changes_and_is_kept_behind_a_daemon(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    applied = tmp_path / "applied"
    applied.mkdir()
    install("both", f"APPLIED = {str(applied)!r}\n{BOTH}")

    def changes(id_: str) -> Any:
        return daemon.ask("GET", f"/v1/sandboxes/{id_}/changes").json

    with running() as daemon:
        made = daemon.sandbox(backend="both")
        where = f"/v1/sandboxes/{made}"
        assert daemon.ask("GET", where).json["abilities"] == ["snapshot", "changes"]
        ran = daemon.cli("run", "--backend", "both", "--json", "--", "touch", "x")
        assert json.loads(ran.stdout)["changes"] == ["A x"]
        daemon.ask("POST", f"{where}/exec", {"cmd": "echo one > a"})
        assert changes(made) == ["A a"]
        kept = daemon.ask("POST", f"{where}/snapshot")
        assert kept.status == 201 and kept.json["fidelity"] == "files", kept.body
        (copy,) = daemon.ask("POST", f"{where}/fork", {"count": 1}).json
        daemon.ask("POST", f"{where}/exec", {"cmd": "mv a b"})
        daemon.stop(kill=True)
        daemon.start()  # another daemon, which the supervisor tells what the wall can do
        assert changes(made) == ["A b"] and changes(copy["id"]) == ["A a"]
        again = daemon.sandbox(snapshot=kept.json["id"])
        assert changes(again) == ["A a"]
        assert daemon.ask("POST", f"{where}/snapshot").status == 201
        assert daemon.ask("POST", f"{where}/apply").status < 300
        assert (applied / "b").read_text() == "one\n"
        refused = daemon.ask("POST", f"{where}/pause")
        assert (refused.status, refused.json["code"]) == (501, "unsupported"), refused.body
        assert refused.json["message"] == "backend both cannot pause a sandbox"
        assert refused.json["cause"] == "it keeps files alone"
        asked = {"backend": "both", "idle_timeout": "10m"}
        refused = daemon.ask("POST", "/v1/sandboxes", asked)
        assert (refused.status, refused.json["cause"]) == (501, "it keeps files alone")
        asked["on_idle"] = "end"
        ending = daemon.ask("POST", "/v1/sandboxes", asked).json
        assert daemon.ask("DELETE", f"/v1/sandboxes/{ending['id']}").status < 300
        assert refused.json["remediation"] == (
            "use a backend that can: host, landlock, linux, oci, gvisor, firecracker, qemu; "
            'or have it ended when it is idle: "on_idle": "end"'
        )


def test_a_wall_says_itself_whether_it_takes_images(install: Callable[[str, str], None]) -> None:
    install("both", BOTH)
    install("air", AIR.format(level="MICROVM"))
    told = {
        "both": (True, ["changes", "fork", "snapshot"], "files"),
        "air": (False, ["pause"], ""),
        "linux": (True, ["changes", "fork", "network", "pause", "snapshot"], "files"),
        "qemu": (True, ["fork", "network", "pause", "snapshot"], "memory"),
    }
    for name, code in (("both", 0), ("air", 125), ("landlock", 125)):
        ran = agentd(
            "run", "--isolation", "process", "--backend", name, "--image", "slim", "--", "true"
        )
        assert ran.returncode == code, ran
        assert (f"backend {name} takes no image, and slim was" in ran.stderr) is (code == 125)
    found = json.loads(agentd("doctor", "--json").stdout)["backends"]
    with running() as daemon:
        for listed in (found, daemon.ask("GET", "/v1/backends").json):
            assert told == {
                one["name"]: (one["images"], one["abilities"], one["fidelity"])
                for one in listed
                if one["name"] in told
            }
        asked = {"backend": "both", "image": "slim"}
        assert daemon.ask("POST", "/v1/sandboxes", asked).status == 201
        refused = daemon.ask("POST", "/v1/sandboxes", {**asked, "backend": "air"})
        assert b"backend air takes no image" in refused.body


def test_broken_ones_are_told_and_skipped(install: Callable[[str, str], None]) -> None:
    for name, source in BROKEN.items():
        install(name, source)
    found = {one["name"]: one for one in json.loads(agentd("doctor", "--json").stdout)["backends"]}
    for name in BROKEN.keys() - {"plans"}:  # which is seen by whoever asks for one
        assert not found[name]["usable"] and "cannot be" in found[name]["blockers"][0]["what"]
        assert found[name]["blockers"][0]["fix"] == "fix or uninstall the package it is in"
    # Behind all of ours that would do: what is left are the virtual machines, or nothing.
    words = ("run", "--isolation", "userspace-kernel", "--memory", "99T", "--", "true")
    told = agentd(*words).stderr
    assert "Traceback" not in told and "internal" not in told, told
    for name in BROKEN:
        named = agentd("run", "--backend", name, "--", "true")
        assert named.returncode == 125 and name in named.stderr and "cannot be" in named.stderr
    assert agentd("run", "--", "true").returncode == 0
    code, report = selftested("landlock", *BROKEN)
    assert code == 1 and not report["passed"]
    usable = {one["name"] for one in report["backends"] if one["usable"]}
    assert usable == {"landlock", "plans"}
    with running() as daemon:
        for name in BROKEN:
            refused = daemon.ask("POST", "/v1/sandboxes", {"backend": name})
            assert refused.code == "unavailable" and "cannot be" in refused.body.decode()
        daemon.sandbox()
        listed = daemon.ask("GET", "/v1/backends").json
        assert {one["name"] for one in listed if one["usable"]} & BROKEN.keys() == {"plans"}


def test_the_wall_of_the_page_works(install: Callable[[str, str], None]) -> None:
    (source,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert 'entry-points."agentd.backends"' in PAGE
    install("fence", source)
    assert "fence" in agentd("doctor").stdout
    ran = agentd("run", "--backend", "fence", "--", "echo", "behind it")
    assert ran.stdout == "behind it\n", ran
    code, report = selftested("fence")
    assert code == 0 and report["passed"]


def test_one_that_ends_whoever_asks_it_passes_for_nothing(
    install: Callable[[str, str], None],
) -> None:
    for name, member in EXITS.items():
        source = AIR.replace("air", name).replace("Air", name.capitalize())
        install(name, source.format(level="NAMESPACE") + member)
    found = {one["name"]: one for one in json.loads(agentd("doctor", "--json").stdout)["backends"]}
    for name in ("probing", "listing"):
        assert "SystemExit" in found[name]["blockers"][0]["what"]
    for name in EXITS.keys() - {"listing"}:
        for words in (("selftest", "--backend", name), ("run", "--backend", name, "--", "true")):
            ran = agentd(*words)
            assert ran.returncode == (1 if words[0] == "selftest" and name != "closing" else 125)
            wrong = "returned None" if name in ODD else "SystemExit"
            assert wrong in ran.stdout + ran.stderr, ran
    with running() as daemon:
        for name in EXITS.keys() - {"listing", "closing"}:
            refused = daemon.ask("POST", "/v1/sandboxes", {"backend": name})
            assert refused.code in ("unavailable", "sandbox_error"), refused.body
            wrong = "returned None" if name in ODD else "SystemExit"
            assert f"backend {name} " in refused.body.decode() and wrong in refused.body.decode()
        daemon.sandbox()


def test_what_a_wall_raises_is_told_as_its_packages_and_it_ends_all_the_same(
    install: Callable[[str, str], None],
) -> None:
    install("spiteful", SPITEFUL)
    ran = subprocess.run(
        [sys.executable, "-c", SPITED], capture_output=True, text=True, timeout=120, check=False
    )
    used = "sandbox_error; backend spiteful cannot be used: KeyError: 'of mine'; fix or uninstall"
    assert [line[: len(used)] for line in ran.stdout.splitlines()] == [used, used, "killed"], ran
    with running() as daemon:
        made = daemon.sandbox(backend="spiteful")
        where = f"/v1/sandboxes/{made}"
        refused = daemon.ask("POST", f"{where}/pause")
        assert (refused.status, refused.json["code"]) == (502, "sandbox_error"), refused.body
        assert refused.json["message"] == "backend spiteful cannot be used: KeyError: 'of mine'"
        daemon.ask("DELETE", where)
        other = daemon.sandbox()  # the supervisor that had to end it is still there
        assert daemon.ask("GET", f"/v1/sandboxes/{other}").status == 200


def test_what_a_wall_answers_is_looked_at_and_what_it_has_cannot_keep_it(
    install: Callable[[str, str], None],
) -> None:
    install("grudging", GRUDGING)
    ran = subprocess.run(
        [sys.executable, "-c", GRUDGED], capture_output=True, text=True, timeout=120, check=False
    )
    wrong = "TypeError: what counters() returns is wrong: Expected `object`, got `null`"
    told = f"sandbox_error; backend grudging cannot be used: {wrong}"
    assert ran.stdout.splitlines() == [told, "killed"], ran
    with running() as daemon:
        other = daemon.sandbox()
        made = daemon.sandbox(backend="grudging")
        daemon.ask("DELETE", f"/v1/sandboxes/{made}")
        assert daemon.ask("GET", f"/v1/sandboxes/{other}").status == 200


def test_what_breaks_between_a_daemon_and_its_supervisor_is_no_ones_wall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "_third_parties", lambda: {"near": f"{__name__}:Near"})

    def short(_: object) -> dict[str, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    with supervised(Near()) as held:
        manager = held.pipeline.manager
        handle = manager.create(SandboxSpec(IsolationLevel.NONE, backend="near"))
        monkeypatch.setattr(RemoteWall, "usage", short)
        with pytest.raises(OSError, match="Too many open files"):
            handle.wall.usage()
        assert held.supervisor.daemon is not None
        held.supervisor.daemon.shutdown(socket.SHUT_RDWR)
        anew = RemoteBackend(manager.backend("near")._link, "near")  # type: ignore[attr-defined]
        with pytest.raises(BackendLost, match="the supervisor has ended"):
            backends.probe(anew)


def test_what_is_no_wall_is_told_as_it_is_built(install: Callable[[str, str], None]) -> None:
    for name, line in NO_WALLS.items():
        source = AIR.replace("air", name).replace("Air", name.capitalize())
        member = f"""
    def launch(self, plan):
        wall = super().launch(plan)
        {line}
        return wall
"""
        install(name, source.format(level="PROCESS") + member)
    for name in NO_WALLS:
        ran = agentd("run", "--isolation", "process", "--backend", name, "--", "true")
        assert ran.returncode == 125 and "internal" not in ran.stderr, ran
        wrong = {
            "bare": "TypeError: its wall has no workspace",
            "lacking": "ZeroDivisionError",
            "mislacking": "TypeError: the lacks of its wall is",
        }.get(name, "TypeError: the enforcement of its wall is")
        assert f"backend {name} cannot be used: {wrong}" in ran.stderr, ran


def test_one_that_builds_nothing_from_a_snapshot_passes_for_nothing(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    install("both", BOTH)
    kept = str(tmp_path / "kept")
    made = agentd("run", "--backend", "both", "--save-snapshot", kept, "--", "true")
    assert made.returncode == 0, made
    for member in ("raise SystemExit(0)", "return None"):
        source = f"{BOTH}\n    def restore(self, plan, folder):\n        {member}\n"
        (tmp_path / "both_wall.py").write_text(source)
        ran = agentd("run", "--snapshot", kept, "--", "true")
        assert ran.returncode == 125, ran
        assert "backend both cannot be used: " in ran.stderr
