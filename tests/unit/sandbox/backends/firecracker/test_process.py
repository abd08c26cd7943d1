"""A monitor's whole life, with fake programs and everything else real."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.firecracker import programs

from agentd.model.errors import BackendLost, SandboxError
from agentd.model.result import CauseCode
from agentd.sandbox.backends.cgroups import group_name
from agentd.sandbox.backends.firecracker import config, jailer, process
from agentd.sandbox.backends.firecracker.api import ApiError
from agentd.sandbox.backends.firecracker.config import ApiRequest
from agentd.sandbox.backends.firecracker.jailer import Jail
from agentd.sandbox.backends.firecracker.process import FirecrackerProcess
from agentd.sandbox.backends.vm.ending import MachineEnded

pytestmark = pytest.mark.root
UID = 2_000_000_123
ASK = ApiRequest("GET", "/version", None)
Start = Callable[..., FirecrackerProcess]


@pytest.fixture
def base(place: Path) -> Iterator[Path]:
    base = place / "jails"
    base.mkdir()
    yield base
    assert list(base.glob("*/*")) == []


@pytest.fixture
def start(place: Path, base: Path, image) -> Iterator[Start]:
    """With the settings of ``programs.make``; whatever still runs is ended after the test."""
    (place / "bin").mkdir()
    made: list[FirecrackerProcess] = []

    def start(version: str = "1.16.1", **settings: Any) -> FirecrackerProcess:
        found = programs.make(place / "bin", version, **settings)
        jail = Jail(str(base), group_name(), UID)
        argv = jailer.command(jail, found["jailer"], found["firecracker"], 128 << 20)
        binds = {config.KERNEL: image.kernel, config.INITRAMFS: image.initramfs}
        made.append(FirecrackerProcess(jail, argv, binds))
        return made[-1]

    yield start
    for monitor in made:
        monitor.end()


def pid_of(monitor: FirecrackerProcess) -> int:
    text = Path(f"/proc/self/fdinfo/{monitor.pidfd}").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pid:")))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_it_starts_answers_and_ends_without_a_trace(start: Start) -> None:
    monitor = start()
    pid = pid_of(monitor)
    assert monitor.request(ASK) == {"firecracker_version": "1.16.1"}
    assert monitor.alive()
    monitor.end()
    monitor.end()
    assert not monitor.alive()
    assert not os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(monitor.jail.folder)


def test_it_is_another_user_in_a_pid_namespace_of_its_own(start: Start) -> None:
    lines = Path(f"/proc/{pid_of(start())}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert set(status["Uid"].split()) == {str(UID)}
    assert status["NSpid"].split()[-1] == "1"
    assert status["NSpid"].split()[-2] != "1"  # the warden is PID 1 of the one above


def test_files_are_bound_into_the_jail_read_only_and_nowhere_else(start: Start, image) -> None:
    monitor = start()
    inside = f"/proc/{pid_of(monitor)}/root{monitor.jail.root}/{config.KERNEL}"
    assert Path(inside).read_bytes() == Path(image.kernel).read_bytes()
    with pytest.raises(OSError, match="Read-only"):
        os.open(inside, os.O_WRONLY)
    assert Path(f"{monitor.jail.root}/{config.KERNEL}").read_bytes() == b""


def test_its_files_and_descriptors_are_limited(start: Start) -> None:
    limits = Path(f"/proc/{pid_of(start())}/limits").read_text().splitlines()
    found = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert found["Max file size"] == str((128 << 20) + (64 << 20))
    assert found["Max open files"] == "2048"


def test_it_inherits_no_descriptor_of_ours(start: Start, place: Path) -> None:
    with open(place / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        pid = pid_of(start())
        names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [name for name in names if "secret" in name]


def test_a_jailer_that_fails_is_told_in_its_own_words(start: Start) -> None:
    with pytest.raises(SandboxError, match="the jailer was asked to fail by the test") as caught:
        start(jailer_exit=1)
    assert "the jailer failed" in caught.value.message


def test_a_jailer_that_is_none_is_told(start: Start, place: Path) -> None:
    with pytest.raises(SandboxError, match=r"cannot start .*jailer"):
        start_without(start, place)


def start_without(start: Start, place: Path) -> None:
    real = programs.make

    def make(*args: Any, **settings: Any) -> dict[str, str]:
        found = real(*args, **settings)
        os.unlink(found["jailer"])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "make", make)
        start()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (148, CauseCode.SECCOMP_VIOLATION),
        (12, CauseCode.OOM),
        (149, CauseCode.OOM),
        (153, CauseCode.SPAWN_FAILED),
    ],
)
def test_its_exit_code_is_a_cause(start: Start, status: int, code: CauseCode) -> None:
    monitor = start(exits={"/entropy": status})
    # The refusal may come before the end; whoever asks next learns of the end.
    with pytest.raises((ApiError, MachineEnded)):
        monitor.request(ApiRequest("PUT", "/entropy", {}))
    assert monitor.wait(120)
    with pytest.raises(MachineEnded) as caught:
        monitor.request(ASK)
    assert (caught.value.status, caught.value.ending.code) == (status, code)
    assert f"(status {status})" in caught.value.cause
    assert "asked to by the test" in caught.value.cause or "bad syscall (232)" in caught.value.cause


def test_one_that_ends_at_once_is_told_with_its_status(start: Start) -> None:
    with pytest.raises(SandboxError) as caught:
        start(start_exit=148)
    # Before the warden knew it, or after.
    words = str(caught.value)
    assert "asked to by the test" in words
    assert "its filter" in words


def test_killed_it_says_so_and_leaves_nothing(start: Start) -> None:
    monitor = start()
    signal.pidfd_send_signal(monitor.pidfd, signal.SIGKILL)
    assert monitor.wait(120)
    assert monitor.why() == "it was killed; the end of its log: Running Firecracker v1.16.1"
    with pytest.raises(MachineEnded, match="killed"):
        monitor.request(ASK)
    monitor.end()


def test_when_its_warden_is_killed_it_ends_and_its_jail_goes(start: Start) -> None:
    monitor = start()
    os.kill(parent_of(pid_of(monitor)), signal.SIGKILL)
    assert monitor.wait(120)
    assert eventually(lambda: not os.path.exists(monitor.jail.folder))
    assert monitor.why() == "its exit status is not known"


def test_when_its_guard_is_killed_it_ends_and_its_jail_goes_with_us(start: Start) -> None:
    monitor = start()
    os.kill(parent_of(parent_of(pid_of(monitor))), signal.SIGKILL)
    assert monitor.wait(120)
    monitor.end()
    assert not os.path.exists(monitor.jail.folder)


_HOST = """
import os, signal, sys
sys.path[:0] = sys.argv[1:3]
from tests.firecracker import programs
from agentd.sandbox.backends.firecracker import jailer
from agentd.sandbox.backends.firecracker.jailer import Jail
from agentd.sandbox.backends.firecracker.process import FirecrackerProcess
from agentd.sandbox.backends.vm.ending import MachineEnded
from agentd.sandbox.backends.cgroups import group_name
from pathlib import Path
found = programs.make(Path(sys.argv[4]))
jail = Jail(sys.argv[3], group_name(), 2000000123)
argv = jailer.command(jail, found["jailer"], found["firecracker"], 1 << 27)
monitor = FirecrackerProcess(jail, argv, {})
print(monitor.jail.folder, flush=True)
text = Path(f"/proc/self/fdinfo/{monitor.pidfd}").read_text()
print(text.split("Pid:")[1].split()[0], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_when_the_host_is_killed_nothing_stays(place: Path, base: Path) -> None:
    (place / "bin").mkdir()
    root = Path(programs.ROOT)
    done = subprocess.run(
        [sys.executable, "-c", _HOST, str(root), str(root / "src"), str(base), str(place / "bin")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder, pid = done.stdout.split()
    assert eventually(lambda: not os.path.exists(folder))
    assert eventually(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_request_that_hangs_is_given_up_and_it_can_still_be_ended(start: Start) -> None:
    monitor = start(hang="/version")
    with pytest.raises(BackendLost, match="no answer to GET /version"):
        monitor.request(ASK, 0.2)
    assert monitor.alive()


def test_a_load_that_fails_takes_it_along_and_the_reason_is_told(start: Start) -> None:
    monitor = start()
    body = {
        "snapshot_path": "absent",
        "mem_backend": {"backend_type": "File", "backend_path": "absent"},
    }
    with pytest.raises((ApiError, MachineEnded), match=r"Load snapshot|gave up"):
        monitor.request(ApiRequest("PUT", "/snapshot/load", body))
    assert monitor.wait(120)
    assert monitor.why().startswith("it gave up (status 1)")


def test_an_api_that_never_opens_is_given_up(
    start: Start, monkeypatch: pytest.MonkeyPatch, place: Path, base: Path
) -> None:
    monkeypatch.setattr(process, "_API_SECONDS", 0.3)
    monkeypatch.setattr(jailer, "API", "elsewhere")
    original = jailer.command

    def command(*args: Any) -> list[str]:
        return [word if word != "elsewhere" else "api" for word in original(*args)]

    monkeypatch.setattr(jailer, "command", command)
    with pytest.raises(BackendLost, match="opened no API"):
        start()


def test_a_stale_socket_in_a_reused_jail_cannot_be(start: Start) -> None:
    """Each machine has a jail of its own name, made by us: a jail that is there is an error."""
    monitor = start()
    with pytest.raises(SandboxError, match="cannot be made"):
        FirecrackerProcess(monitor.jail, [], {})
    # And the living one keeps its own.
    assert os.path.exists(monitor.jail.folder)
    assert monitor.request(ASK)


def test_its_log_is_bounded_and_safe(start: Start) -> None:
    monitor = start(exits={"/entropy": 1}, chatter="\x1b[2J" + "x" * 1000, lines=500)
    with contextlib.suppress(ApiError, MachineEnded):
        monitor.request(ApiRequest("PUT", "/entropy", {}))
    assert monitor.wait(120)
    log = monitor.why()
    assert "\x1b" not in log
    assert len(log) < 500
