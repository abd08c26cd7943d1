"""PID 1: what it asks of the kernel, and a real run as the init of new namespaces."""

import base64
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.recording import RecordingKernel

from agentd.guest import init

# Run as PID 1 in new namespaces. devtmpfs is one for the whole machine: a tmpfs stands in for it.
# So are the options of cgroup2: they stay as they are.
# The agent answers a line on stdin with what is asked of it.
PROGRAM = """
import os, sys, time
from agentd.guest import init, main
from agentd.linux.kernel import Kernel
main._import_all()  # the checkout itself may lie in /tmp

class Contained(Kernel):
    def mount(self, source, target, fstype, flags, data=None):
        if fstype == "devtmpfs":
            super().mount("tmpfs", target, "tmpfs", flags, data)
            os.mknod("/dev/null", 0o20666, os.makedev(1, 3))
            return
        if fstype == "cgroup2":
            data = None
        super().mount(source, target, fstype, flags, data)

def real_agent():
    from agentd.guest.main import run
    return run(["fd:" + sys.argv[1]], pid1=True)

def agent():
    print("agent", os.getpid(), os.getppid(), flush=True)
    for line in sys.stdin:
        answer = eval(line)
        print(answer, flush=True)
    return 0

init.Init(real_agent if sys.argv[1:] else agent, Contained()).run()
"""

DONE = {"exit_code": 0, "stdout": "", "stderr": "", "error": None}


@pytest.fixture
def quiet_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.environ["PATH"])


def test_every_file_system_is_mounted_in_order() -> None:
    kernel = RecordingKernel()
    assert init.mount_all(kernel) == []
    targets = [args[1] for name, args in kernel.calls if name == "mount"]
    assert targets == [os.fsencode(target) for _, target, _, _ in init.MOUNTS]
    devpts = next(args for _, args in kernel.calls if args[1] == b"/dev/pts")
    assert devpts[4] == b"newinstance,ptmxmode=0666,mode=0620"


def test_a_mount_that_fails_is_warned_of_and_the_rest_is_mounted() -> None:
    kernel = RecordingKernel({"mount": [OSError(errno.EPERM, "Operation not permitted")]})
    assert init.mount_all(kernel) == ["/proc not mounted as proc: Operation not permitted"]
    assert kernel.names() == ["mount"] * len(init.MOUNTS)


def test_what_is_mounted_already_is_no_warning() -> None:
    kernel = RecordingKernel({"mount": [OSError(errno.EBUSY, "Device or resource busy")]})
    assert init.mount_all(kernel) == []


def test_boot_goes_on_whatever_fails(capfd: pytest.CaptureFixture[str], quiet_path: None) -> None:
    mounts = [OSError(errno.EPERM, "Operation not permitted")] * len(init.MOUNTS)
    kernel = RecordingKernel({"mount": mounts, "sethostname": [OSError(errno.EPERM, "no")]})
    init.boot(kernel)
    warnings = capfd.readouterr().err.splitlines()
    assert "agentd-guest: /tmp not mounted as tmpfs: Operation not permitted" in warnings
    assert any(line.startswith("agentd-guest: host name not set: ") for line in warnings)
    assert ("sethostname", (b"agentd-vm", 9)) in kernel.calls


def test_as_the_first_agent_it_says_and_mounts_what_that_did() -> None:
    program = """
import os
from agentd.guest import init
from tests.recording import RecordingKernel
os.environ.pop("PATH", None)
init.become_the_first()
kernel = RecordingKernel()
init.make_links = lambda: []
os.makedirs = lambda *words, **options: None
init.boot(kernel)
print([args[4] for name, args in kernel.calls if name == "mount" and args[1] == b"/run"])
print(os.environ.get("PATH"))
"""
    root = Path(__file__).parents[3]  # for ``tests``
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, check=True, cwd=root)
    assert done.stdout == b"[b'mode=1777']\nNone\n"
    assert done.stderr.splitlines()[:2] == [
        b"fc-guest-agent: Starting...",
        b"fc-guest-agent: Running as init (PID 1), setting up filesystems...",
    ]


def test_closed_standard_descriptors_become_dev_null() -> None:
    code = (
        "import os; from agentd.guest import init; os.closerange(0, 3);"
        "init.open_standard_descriptors();"
        "same = [os.fstat(fd).st_rdev == os.makedev(1, 3) for fd in range(3)];"
        "os._exit(0 if all(same) else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_delays_double_up_to_the_bound_and_start_anew_after_a_sound_run() -> None:
    backoff = init.Backoff()
    delays = [backoff.after(0.5) for _ in range(8)]
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.after(init.SOUND_AFTER_S) == 0.1


def test_unmounts_the_last_mount_first_and_lazily_where_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(init, "mount_points", lambda: ["/proc", "/tmp"])
    kernel = RecordingKernel({"umount2": [OSError(errno.EBUSY, "busy"), 0, 0]})
    init.unmount_all(kernel)
    assert kernel.calls[:3] == [
        ("umount2", (b"/tmp", 0)),
        ("umount2", (b"/tmp", 2)),
        ("umount2", (b"/proc", 0)),
    ]
    assert kernel.calls[3] == ("mount", (None, b"/", None, 33, None))


def test_signals_to_all_are_sent_by_pid_1_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    init._signal_all(signal.SIGKILL)
    assert sent == []
    monkeypatch.setattr(os, "getpid", lambda: 1)
    init._signal_all(signal.SIGKILL)
    assert sent == [(-1, signal.SIGKILL)]


class Machine:
    """PID 1 and its agent; ``ask`` has the agent evaluate an expression."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._in, self._out = process.stdin, process.stdout

    def line(self) -> str:
        assert select.select([self._out], [], [], 120)[0], "init does not answer"
        return self._out.readline().decode().strip()

    def ask(self, expression: str) -> str:
        self._in.write(expression.encode() + b"\n")
        self._in.flush()
        return self.line()


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """PROGRAM as PID 1, and with it all processes of the namespace, until the end of the block."""
    command = [
        "unshare", "--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--kill-child",
        sys.executable, "-u", "-c", PROGRAM, *arguments,
    ]  # fmt: skip
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, bufsize=0, **pipes, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with started() as process:
        yield Machine(process)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to be PID 1 of new namespaces")
class TestAsPid1:
    def test_the_machine_is_made_ready(self, machine: Machine) -> None:
        assert machine.line() == "agent 2 1"
        assert machine.ask("os.uname().nodename") == "agentd-vm"
        assert machine.ask("os.readlink('/dev/fd')") == "/proc/self/fd"
        assert machine.ask("[os.path.ismount(m[1]) for m in init.MOUNTS].count(True) >= 7") == (
            "True"
        )
        assert machine.ask("oct(os.stat('/dev/pts/ptmx').st_mode)") == "0o20666"
        assert machine.ask("oct(os.stat('/dev/shm').st_mode)") == "0o41777"
        assert machine.ask("os.close(os.openpty()[0])") == "None"
        assert machine.ask("open('/sys/class/net/lo/carrier').read()[0]") == "1"
        assert machine.ask("__import__('signal').pthread_sigmask(0, ())") == "set()"
        assert machine.ask("os.getsid(0)") == "2"

    def test_orphans_are_reaped(self, machine: Machine) -> None:
        machine.line()
        # Each leaves a child behind that ends at once: without an init that reaps, a zombie.
        assert machine.ask("[os.system('true & true &') for _ in range(20)] == [0] * 20") == "True"
        listing = "[p for p in os.listdir('/proc') if p.isdigit()]"
        wait = f"[time.sleep(.05) for _ in range(200) if len({listing}) > 2] and None"
        machine.ask(wait)
        assert machine.ask(f"sorted({listing})") == "['1', '2']"

    def test_an_agent_that_dies_is_started_again_and_its_commands_are_gone(
        self, machine: Machine
    ) -> None:
        machine.line()
        assert machine.ask("__import__('subprocess').Popen(['sleep', '600']).pid") == "3"
        machine._in.write(b"os.kill(2, 9)\n")
        assert machine.line() == "agent 4 1"
        assert machine.ask("os.path.exists('/proc/3')") == "False"

    def test_sigterm_ends_every_process_and_reboots(self, machine: Machine) -> None:
        machine.line()
        stubborn = (
            "os.spawnlp(os.P_NOWAIT, 'sh', 'sh', '-c', 'trap : TERM; while :; do sleep 9; done')"
        )
        machine.ask(stubborn)
        machine._in.write(b"os.kill(1, 15)\n")
        machine._in.close()
        # reboot(2) in a pid namespace ends its init with SIGHUP (pid_namespaces(7)).
        assert machine.process.wait(120) == -signal.SIGHUP

    def test_the_real_agent_is_served_on_after_a_command_has_killed_it(
        self, tmp_path: Path
    ) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            fd = listener.fileno()
            with started(str(fd), pass_fds=[fd]) as process:
                before = ask(tmp_path / "s", '["sh",["-c","echo $PPID; hostname"]]')
                assert before["stdout"] == base64.b64encode(b"2\nagentd-vm\n").decode()
                assert ask(tmp_path / "s", '["sh",["-c","kill -9 $PPID; sleep 600"]]') == {}
                assert ask(tmp_path / "s", '["echo"]')["stdout"] == "Cg=="
                assert ask(tmp_path / "s", '["kill",["1"]]') in ({}, DONE)
                assert process.wait(120) == -signal.SIGHUP


def ask(path: Path, request: str) -> dict[str, Any]:
    """The reply to one request, {} if the connection ended without one."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(str(path))
        client.sendall(request.encode() + b"\n")
        try:
            line = client.makefile("rb").readline()
        except ConnectionResetError:
            line = b""
    reply: dict[str, Any] = json.loads(line or b"{}")
    return reply
