"""The self-test against whole walls, and against walls with named controls left out: it must tell
exactly the attacks that those controls had stopped."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import msgspec
import pytest
from tests import combinations

from agentd.client.cli.main import main
from agentd.daemon.pipeline import Pipeline
from agentd.model.enforcement import Control
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.gvisor.backend import GvisorBackend
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.sandbox.backends.linux.plan import LinuxPlan
from agentd.sandbox.backends.linux.wall import LinuxWall
from agentd.sandbox.backends.process import HostBackend, LandlockBackend
from agentd.sandbox.manager import Manager
from agentd.sandbox.ports import Backend, Wall
from agentd.selftest import SelftestReport, selftest
from agentd.selftest.attack import UNREPORTED, Attack
from agentd.selftest.attacks import ATTACKS
from agentd.selftest.report import AttackRow, Verdict

# A control as the report names it, and as the backends' ``without`` does.
SWITCHES = {
    "seccomp": "seccomp",
    "landlock": "landlock",
    "capabilities": "capabilities",
    "agent_protected": "dumpable",
    "no_new_privs": "no_new_privs",
    "user": "identity",
    "open_files": "rlimits",
}
OFF = [
    ("seccomp",),
    ("landlock",),
    ("capabilities",),
    ("agent_protected",),
    ("open_files",),
    ("seccomp", "landlock"),
    ("seccomp", "capabilities"),
    ("seccomp", "agent_protected"),
    ("seccomp", "landlock", "capabilities"),
    ("seccomp", "landlock", "no_new_privs"),  # which cannot be without it
]
OFF_AS_ROOT = [
    ("user",),
    ("landlock", "user"),
    ("capabilities", "user"),
    ("landlock", "user", "agent_protected"),
    # With its capabilities root traces what is protected, too.
    ("seccomp", "user", "capabilities", "agent_protected"),
    ("seccomp", "landlock", "user", "capabilities", "agent_protected"),
]


# Of several controls off behind a process wall every run asks the least and the most: what each
# other pair stops is asked behind the namespace wall, which has the same.
OFF_OF_A_PROCESS = [
    off
    for off in OFF + OFF_AS_ROOT
    if combinations.ALL or len(off) == 1 or off in (OFF_AS_ROOT[1], OFF_AS_ROOT[-1])
]
# Of a machine, where each attack starts an emulated Python, every run asks a third.
ON_A_MACHINE = ATTACKS if combinations.ALL else ATTACKS[::3]
PAST_RULES = "reach the host past its network's rules"
BEYOND_RULES = "reach names, numbers and ports that no rule has"
WALLS = ("--backend", "landlock", "--backend", "linux")
LEVEL = IsolationLevel.PROCESS


class RootLandlock(LandlockBackend):
    """Whose workspace is root's, as its commands then are."""

    def _config(self, *asked: Any) -> dict[str, object]:
        return super()._config(*asked) | {"uid": None}


class SharedNetwork(LinuxBackend):
    """Without a network namespace, whatever was asked for."""

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        return super().plan(msgspec.structs.replace(spec, net="host"))


class Open(SharedNetwork):
    """Which shares the host's network, and says that it holds to the rules."""

    def launch(self, plan: LinuxPlan) -> LinuxWall:
        wall = super().launch(plan)
        rules = Control("restricted", True, "upon my word")
        wall.enforcement = {**wall.enforcement, "network": rules}
        return wall


class Liar(LinuxBackend):
    """Without a control, which its report says that it has."""

    def __init__(self, name: str) -> None:
        super().__init__(without=frozenset({name}))
        self.claimed = name

    def launch(self, plan: LinuxPlan) -> LinuxWall:
        wall = super().launch(plan)
        word = Control("default", True, "upon my word")
        wall.enforcement = {**wall.enforcement, self.claimed: word}
        return wall


class Unlimited(LinuxBackend):
    """Which takes limits and holds others."""

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        return super().plan(msgspec.structs.replace(spec, limits=Limits()))


class Machine(LinuxBackend):
    """Which says that it is a virtual machine, or has a kernel of its own."""

    def __init__(self, level: IsolationLevel) -> None:
        super().__init__()
        self.level = level

    def launch(self, plan: LinuxPlan) -> LinuxWall:
        wall = super().launch(plan)
        word = Control("default", True, "upon my word")
        told = {"virtual_machine": word, "userspace_kernel": word}
        wall.enforcement = {**wall.enforcement, **told}
        return wall


class Careless(GvisorBackend):
    """Whose kernel writes set-id bits to folders of the host's, and says that it does not."""

    def __init__(self) -> None:
        super().__init__(without=frozenset({"seccomp", "set_id"}))

    def launch(self, plan: LinuxPlan) -> Wall:
        wall = super().launch(plan)
        word = Control("default", True, "upon my word")
        wall.enforcement = {**wall.enforcement, "set_id": word}
        return wall


class Leaky(LinuxBackend):
    """Which hands on the caller's environment and shows the host's temporary files."""

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        folder = tempfile.gettempdir()
        mounts = (*spec.mounts, Mount(folder, folder, MountMode.RO))
        return super().plan(msgspec.structs.replace(spec, env=dict(os.environ), mounts=mounts))


@contextlib.contextmanager
def _pipeline(*backends: Backend) -> Iterator[Pipeline]:
    manager = Manager(made={backend.name: backend for backend in backends})
    try:
        for backend in backends:
            found = backend.probe()
            if not found.usable:
                pytest.skip(f"{backend.name}: {'; '.join(b.what for b in found.blockers)}")
        yield Pipeline(manager)
    finally:
        manager.close()


def _run(backend: Backend, attacks: Iterable[Attack] = ATTACKS) -> SelftestReport:
    with _pipeline(backend) as pipeline:
        return selftest(pipeline, [backend.name], thorough=True, attacks=attacks)


def _rows(report: SelftestReport) -> dict[str, AttackRow]:
    (backend,) = report.backends
    return {row.name: row for row in backend.attacks}


def _through(report: SelftestReport) -> set[str]:
    return {row.name for row in _rows(report).values() if row.verdict is Verdict.THROUGH}


def _only_by(backend: Backend, off: Iterable[str]) -> set[str]:
    """The attacks that nothing is left to stop."""
    controls = {a.name: a.stopped_by.get(backend.level, ()) for a in ATTACKS}
    return {name for name, by in controls.items() if by and set(by) <= set(off)}


def _and_others(concerned: Collection[str]) -> list[Attack]:
    """The attacks of these names, and of the others all, or in every run a third."""
    others = ATTACKS if combinations.ALL else ATTACKS[::3]
    return [a for a in ATTACKS if a.name in concerned or a in others]


def _concerned(backend: Backend, off: Collection[str]) -> list[Attack]:
    """Those that one of several controls stops; where one alone is off, others as well.

    What none of several stops has been told apart from each already.
    """
    concerned = [a for a in ATTACKS if set(a.stopped_by.get(backend.level, ())) & set(off)]
    return concerned if len(off) > 1 else _and_others({a.name for a in concerned})


@pytest.mark.parametrize("kind", [LandlockBackend, LinuxBackend])
def test_a_whole_wall_passes(kind: type[Backend]) -> None:
    report = _run(kind())
    bad = [row for row in _rows(report).values() if row.verdict.bad]
    assert bad == []
    assert report.passed
    for row in _rows(report).values():
        assert row.detail or row.verdict is Verdict.WORKS, f"{row.name} says not why"


@pytest.mark.parametrize("off", OFF, ids=" ".join)
def test_a_namespace_wall_without_a_control_fails(off: tuple[str, ...]) -> None:
    backend = LinuxBackend(without=frozenset(SWITCHES[name] for name in off))
    report = _run(backend, _concerned(backend, off))
    assert _through(report) == _only_by(backend, off)
    assert report.passed is (not _only_by(backend, off))
    assert not [row for row in _rows(report).values() if row.verdict is Verdict.UNDECIDED]
    for row in _rows(report).values():
        if row.verdict is Verdict.THROUGH:  # the sandbox's own report did not hide it
            assert f"not in force: {row.controls[0]}: " in row.detail, row


@pytest.mark.root
@pytest.mark.parametrize("off", OFF_OF_A_PROCESS, ids=" ".join)
def test_a_process_wall_without_a_control_fails(off: tuple[str, ...]) -> None:
    kind = RootLandlock if "user" in off else LandlockBackend
    backend = kind(without=frozenset(SWITCHES[name] for name in off))
    report = _run(backend, _concerned(backend, off))
    assert _through(report) == _only_by(backend, off)
    assert report.passed is (not _only_by(backend, off))


def test_each_row_is_told_as_it_comes() -> None:
    told: list[tuple[str, AttackRow]] = []
    with _pipeline(backend := LandlockBackend()) as pipeline:
        report = selftest(
            pipeline,
            [backend.name],
            attacks=_and_others(()),
            told=lambda name, row: told.append((name, row)),
        )
    assert told == [("landlock", row) for row in _rows(report).values()]


def test_a_shared_network_fails() -> None:
    names = {"reach a service on the host's loopback", PAST_RULES}
    report = _run(SharedNetwork(), _and_others(names))
    assert _through(report) - {"reach the cloud's metadata service", BEYOND_RULES} == names


def test_a_network_of_rules_that_is_open_fails_whatever_its_wall_says() -> None:
    report = _run(Open(), [attack for attack in ATTACKS if attack.rules])
    assert not report.passed
    rows = _rows(report)
    assert "it arrived at the host: own, tcp, udp" in rows[PAST_RULES].detail
    assert rows["reach what its network's rules name"].verdict is Verdict.BROKEN
    # Where this machine has no way to others, nobody in there has.
    assert _through(report) - {BEYOND_RULES} == {PAST_RULES}


@pytest.mark.parametrize(
    ("control", "attack"),
    [
        ("hostname", "learn the machine's name"),
        ("cgroup_namespace", "learn the names of the machine's control groups"),
    ],
)
def test_a_wall_that_lies_about_what_it_hides_fails(control: str, attack: str) -> None:
    report = _run(Liar(control), [each for each in ATTACKS if each.name == attack])
    assert _through(report) == {attack}
    assert not report.passed
    honest = LinuxBackend(without=frozenset({control}))
    (row,) = _rows(_run(honest, [each for each in ATTACKS if each.name == attack])).values()
    assert row.verdict is Verdict.NOT_APPLICABLE


def test_limits_that_are_not_held_fail() -> None:
    limited = {a.name for a in ATTACKS if a.limits != Limits()}
    through = _through(_run(Unlimited(), _and_others(limited)))
    # A machine that is busy gives nobody more processors than such a limit.
    assert limited - {"run on more processors"} <= through <= limited


@pytest.mark.parametrize("level", [IsolationLevel.USERSPACE_KERNEL, IsolationLevel.MICROVM])
def test_a_machine_that_is_none_fails(level: IsolationLevel) -> None:
    report = _run(Machine(level), _and_others({"have the host's kernel"}))
    assert "have the host's kernel" in _through(report)
    assert not report.passed


def test_set_id_bits_on_files_of_the_hosts_fail() -> None:
    attacks = [attack for attack in ATTACKS if attack.shared]
    assert _through(_run(Careless(), attacks)) == {attack.name for attack in attacks}
    assert _through(_run(GvisorBackend(), attacks)) == set()


def test_a_leak_of_files_and_environment_fails() -> None:
    names = {
        "read a host file that everybody may read",
        "read a private host file",  # a mount shows files as the sandbox's own
        "reach a unix socket of the host by its path",
        "read the caller's environment",
    }
    assert _through(_run(Leaky(), _and_others(names))) == names


def test_a_proc_of_the_hosts_fails() -> None:
    """The zygote's, which shows its other sandboxes."""
    names = {
        "list processes that are not the sandbox's",
        "read the machine's keys, command line and interrupts in /proc",  # nothing is mounted over
    }
    with _pipeline(backend := LinuxBackend(without=frozenset({"proc"}))) as pipeline:
        pipeline.open("uid:0", SandboxSpec(backend="linux"))
        report = selftest(pipeline, ["linux"], attacks=_and_others(names))
    assert backend.name == "linux"
    assert _through(report) == names


def test_with_no_wall_the_attacks_succeed() -> None:
    """They are real: what stops them elsewhere is the wall."""
    report = _run(HostBackend())
    assert not report.passed
    # What agentd itself holds, wall or none, and what a cgroup does.
    by_agentd = {a.name for a in ATTACKS if set(a.stopped_by.get(LEVEL, ())) & UNREPORTED}
    limited = {a.name for a in ATTACKS if a.limits != Limits()}
    rows = _rows(report).values()
    for row in rows:
        if row.name not in by_agentd | limited and row.verdict is not Verdict.NOT_APPLICABLE:
            assert row.verdict in (Verdict.THROUGH, Verdict.WORKS), row
    assert len([row for row in rows if row.verdict is Verdict.THROUGH]) > 25


def test_every_control_is_one_that_a_report_names() -> None:
    for backend in (LandlockBackend(), LinuxBackend()):
        with _pipeline(backend) as pipeline:
            spec = SandboxSpec(isolation=IsolationLevel.NONE, backend=backend.name)
            spec = msgspec.structs.replace(spec, limits=Limits(cpus=1))
            handle = pipeline.open("uid:0", spec)
            named = set(handle.enforcement) | UNREPORTED
        for attack in ATTACKS:
            assert set(attack.stopped_by.get(backend.level, ())) <= named, attack.name


def _agentd(*words: str, timeout: float = 250.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_the_command_tells_programs() -> None:
    ran = _agentd("selftest", "--json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads(ran.stdout)
    assert report["passed"] is True
    assert [backend["name"] for backend in report["backends"]] == ["landlock", "linux"]
    for backend in report["backends"]:
        assert backend["usable"]
        verdicts = {row["verdict"] for row in backend["attacks"]}
        assert verdicts <= {"stopped", "works", "not applicable"}
    assert report["machine"]["kernel"]


def test_the_command_fails_where_there_is_no_wall() -> None:
    ran = _agentd("selftest", "--backend", "host")
    assert ran.returncode == 1, ran.stderr
    assert "got through" in ran.stdout
    assert ran.stdout.splitlines()[-1].startswith("FAILED")


def test_the_command_knows_wrong_usage() -> None:
    for words in (("--backend", "nosuch"), ("--quick",), ("extra",)):
        ran = _agentd("selftest", *words)
        assert ran.returncode == 2, words
        assert len(ran.stderr.splitlines()) == 1


def test_a_wall_that_is_named_and_not_usable_fails() -> None:
    with _pipeline() as pipeline:
        found = pipeline.manager.backend("firecracker").probe()
        if found.usable:
            pytest.skip("firecracker is usable here")
        report = selftest(pipeline, ["firecracker"])
    assert not report.passed
    (backend,) = report.backends
    assert (backend.usable, backend.attacks) == (False, ())
    assert backend.blockers


def test_an_ordinary_users_walls_hold(as_user: Any) -> None:
    ran = as_user.python("-m", "agentd", "selftest", "--json", "--comprehensive", *WALLS)
    report = json.loads(ran.stdout)
    for backend in report["backends"]:
        if not backend["usable"]:
            continue
        bad = {"got through", "broken", "undecided"}
        assert [row for row in backend["attacks"] if row["verdict"] in bad] == []
    assert any(backend["usable"] for backend in report["backends"])


def test_a_virtual_machine_passes() -> None:
    with _pipeline() as pipeline:
        found = pipeline.manager.backend("qemu").probe()
        if not found.usable:
            pytest.skip(f"qemu: {'; '.join(b.what for b in found.blockers)}")
        report = selftest(pipeline, ["qemu"], attacks=ON_A_MACHINE)
    assert report.passed, [row for row in _rows(report).values() if row.verdict.bad]
    stopped = [row for row in _rows(report).values() if row.verdict is Verdict.STOPPED]
    assert len(stopped) >= (15 if combinations.ALL else 5)


def test_a_wall_that_cannot_be_looked_at_is_told_beside_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def short(self: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(LandlockBackend, "probe", short)
    assert main(["selftest", "--backend", "landlock", "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)["backends"]
    assert not told["usable"] and "Too many open files" in told["blockers"][0]["what"]
