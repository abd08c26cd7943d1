"""The wall of gVisor, by the command line and the SDK, and the suite for walls over it."""

import contextlib
import fcntl
import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.security.daemons import running

from agentd import AgentdError, Refused, Sandbox, SandboxError, Unavailable
from agentd.client.cli.main import main
from agentd.linux import process

pytestmark = [pytest.mark.needs("runsc"), pytest.mark.timeout(900)]

SUITE = "agentd.testing.walls"
#: Of the suite for walls a little: tests/contract asks more of it, and scripts/test-gvisor all.
QUICK = "an_exit_code_comes or no_network"


def run(*words: str, capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["run", "--embedded", "--json", *words]) == 0
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    return told


def test_another_kernel_answers(capfd: pytest.CaptureFixture[str]) -> None:
    told = run("--isolation", "userspace-kernel", "--", "dmesg", capfd=capfd)
    assert "gVisor" in told["stdout"]
    assert told["sandbox"]["backend"] == "gvisor"
    report = told["enforcement"]
    assert report["userspace_kernel"]["enforced"]
    assert "systrap" in report["userspace_kernel"]["detail"]
    assert not report["landlock"]["enforced"]
    assert not report["seccomp"]["enforced"]


def test_as_an_ordinary_user_files_are_its_own(as_user: OrdinaryUser) -> None:
    workspace = as_user.home / "work"
    workspace.mkdir()
    os.chown(workspace, *as_user_ids(as_user))
    argv = ["-m", "agentd", "run", "--embedded", "--backend", "gvisor", "-w", str(workspace)]
    done = as_user.python(*argv, "--", "sh", "-c", "id -un; echo inside > made", timeout=250)
    assert (done.returncode, done.stdout) == (0, b"sandbox\n"), done
    assert (workspace / "made").read_text() == "inside\n"


def as_user_ids(as_user: OrdinaryUser) -> tuple[int, int]:
    found = as_user.home.stat()
    return found.st_uid, found.st_gid


def test_root_is_root_of_gvisor_alone() -> None:
    with Sandbox.create(backend="gvisor", embedded=True, user="root") as sandbox:
        script = "id -u; touch /workspace/x && chown 7:8 /workspace/x; mount -t tmpfs t /mnt"
        done = sandbox.run(["sh", "-c", script])
        assert done.text.startswith("0\n")
        assert done.exit_code != 0
        assert not sandbox.enforcement["pids"].enforced


def test_a_umask_is_found_out_in_there_too() -> None:
    """Its /proc does not tell it, and agentd in a container of gVisor's asks for it."""
    code = f"import os\n{inspect.getsource(process.umask)}\nos.umask(0o27)\n"
    code += "print(oct(umask()), oct(os.umask(0)))"
    with Sandbox.create(backend="gvisor", embedded=True) as sandbox:
        assert sandbox.run(["python3", "-c", code], check=True).text == "0o27 0o27\n"


def test_processes_are_counted() -> None:
    with Sandbox.create(backend="gvisor", embedded=True, pids=30) as sandbox:
        fork = "for i in $(seq 60); do sleep 60 & done; kill $(jobs -p); wait"
        done = sandbox.run(["bash", "-c", fork], timeout=120)
        assert b"fork" in done.stderr, done
        assert sandbox.run("echo still", check=True).text == "still\n"


def widest_pipe(pid: int) -> int:
    """Bytes that the widest pipe of a process holds."""
    widest = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("pipe:"):
                continue
            fd = os.open(f"/proc/{pid}/fd/{name}", os.O_RDONLY | os.O_NONBLOCK)
            widest = max(widest, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ))
            os.close(fd)
    return widest


@pytest.mark.skipif(os.geteuid() != 0, reason="how much a user may have in pipes is root's to say")
def test_output_has_a_wide_pipe_with_a_daemon_and_without() -> None:
    """gVisor's kernel waits each time that it finds one full."""
    with (
        Sandbox.create(backend="gvisor", embedded=True) as sandbox,
        sandbox.stream(["sh", "-c", "echo begun; sleep 600"]) as process,
    ):
        assert next(iter(process)).data == b"begun\n"
        assert widest_pipe(os.getpid()) == 1 << 20
        process.kill()
    with running() as daemon, Sandbox.create(url=daemon.url, backend="gvisor") as sandbox:
        assert daemon.process is not None

        def run() -> None:
            with contextlib.suppress(AgentdError):  # its sandbox ends
                sandbox.run(["sleep", "600"])

        command = threading.Thread(target=run)
        command.start()
        try:
            deadline = time.monotonic() + 120
            while widest_pipe(daemon.process.pid) < 1 << 20:
                assert time.monotonic() < deadline and command.is_alive()
                time.sleep(0.05)
        finally:
            sandbox.close()
            command.join()


def test_all_of_it_ends_with_a_cause_when_memory_is_out() -> None:
    with Sandbox.create(backend="gvisor", embedded=True, memory="64M") as sandbox:
        assert sandbox.run("echo small", check=True).text == "small\n"
        if not sandbox.enforcement["memory"].enforced:
            pytest.skip(sandbox.enforcement["memory"].detail)
        eat = "import mmap; m = mmap.mmap(-1, 1 << 30); m.write(b'x' * (1 << 29))"
        done = sandbox.run(["python3", "-c", eat], timeout=200)
        assert done.cause.code == "oom", done


def test_kvm_that_runsc_cannot_open_is_refused() -> None:
    if Path("/dev/kvm").exists() and (os.geteuid() or Path("/dev/kvm").stat().st_mode & 0o6 == 0o6):
        pytest.skip("/dev/kvm may be opened here")
    with pytest.raises(Refused, match="runtime runsc-kvm cannot open /dev/kvm") as refused:
        Sandbox.create(backend="gvisor", embedded=True, runtime="runsc-kvm")
    assert refused.value.remediation.startswith("drop runtime=")


def test_what_runsc_says_is_told_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that runsc is asked where it is known beforehand what it will say.
    monkeypatch.setattr("agentd.sandbox.backends.gvisor.backend._opens_kvm", lambda: True)
    with pytest.raises(SandboxError) as refused:
        Sandbox.create(backend="gvisor", embedded=True, runtime="runsc-kvm").close()
        pytest.skip("KVM runs gVisor here")
    assert "runsc-kvm" in str(refused.value)
    assert "{" not in refused.value.cause, refused.value


def test_a_network_of_the_host_is_refused() -> None:
    with pytest.raises(Refused, match="cannot have the network host"):
        Sandbox.create(backend="gvisor", embedded=True, net="host")


def test_who_lacks_runsc_is_told_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentd.sandbox.backends.oci.runtimes._PLACES", ())
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Unavailable, match=r"runsc is not installed.*apt install runsc"):
        Sandbox.create(backend="gvisor", embedded=True)


def test_the_suite_for_walls_passes(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--pyargs"]
    done = subprocess.run(
        [*argv, SUITE, "--backend", "gvisor", "-k", QUICK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert shutil.which("runsc") or "passed" in done.stdout


def test_no_attack_gets_through(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--backend", "gvisor", "--json"]) == 0
    (report,) = json.loads(capfd.readouterr().out)["backends"]
    stopped = {row["name"] for row in report["attacks"] if row["verdict"] == "stopped"}
    assert len(stopped) > 15, report


def test_doctor_names_what_was_tried(capfd: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    told = json.loads(capfd.readouterr().out)["backends"]
    (found,) = (backend for backend in told if backend["name"] == "gvisor")
    assert found["usable"], found
    assert [note.split()[0] for note in found["notes"]][:1] == ["runsc"]
    assert not any("kvm" in note for note in found["notes"])


@pytest.mark.parametrize("mode", ["4755", "2755"])
def test_a_command_sets_no_set_id_bit_on_the_host(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mode: str
) -> None:
    mount = f"{tmp_path}:/workspace/m:rw"
    script = f"cp /usr/bin/id /workspace/m/id && chmod {mode} /workspace/m/id"
    argv = ["run", "--embedded", "--backend", "gvisor", "--mount", mount, "--", "sh", "-c", script]
    assert main(argv) == 1
    assert "Operation not permitted" in capfd.readouterr().err
    assert not (tmp_path / "id").stat().st_mode & 0o6000


_GROUPS = """
cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us
for path in memory/memory.limit_in_bytes memory/new new; do touch $path && echo 1 > $path; done
mkdir new memory/new; command -v node >/dev/null && node -p 'process.constrainedMemory()'
"""


def test_limits_are_seen_and_changed_by_nobody() -> None:
    with Sandbox.create(backend="gvisor", embedded=True, memory="300M", cpus=0.5) as sandbox:
        if not sandbox.enforcement["memory"].enforced:  # no cgroup: there is nothing to see
            assert sandbox.run("ls /sys/fs/cgroup").text == ""
            return
        told = sandbox.run(_GROUPS).text.split()
        assert told[:3] == [str(300 << 20), "50000", "100000"]
        assert told[3:] in ([], [str(300 << 20)])
        assert sandbox.run("cat /sys/fs/cgroup/memory/memory.limit_in_bytes").text == f"{told[0]}\n"
        assert sandbox.run("ls -d /sys/fs/cgroup/new /sys/fs/cgroup/memory/new").exit_code != 0


def test_devices_are_nobodys() -> None:
    """gVisor keeps them in memory: what could be written there no limit of the disk would bound."""
    with Sandbox.create(backend="gvisor", embedded=True, disk="20M") as sandbox:
        assert "memory limit alone" not in sandbox.enforcement["disk"].detail
        for script in (
            "echo x > /dev/x",
            "mkdir /dev/net/x",
            "rm -f /dev/null",
            "mv /dev/zero /dev/null",
            "chmod 777 /dev",
            "chmod 600 /dev/null",
            "unshare -r sh -c 'rm -f /dev/null || chown 0 /dev'",
        ):
            assert sandbox.run(script).exit_code != 0, script
        works = (
            "echo hi > /dev/null; head -c 4 /dev/urandom > /dev/shm/a; echo > /dev/full || stat -c "
            "%t:%T:%U /dev/null; python3 -c 'import pty; pty.openpty()'; cat /dev/null; wc -c < "
            "/dev/shm/a"
        )
        assert sandbox.run(works, check=True).text == "1:3:nobody\n4\n"


def test_what_bounds_roots_devices_is_told() -> None:
    with Sandbox.create(backend="gvisor", embedded=True, user="root") as sandbox:
        assert "memory limit alone" in sandbox.enforcement["disk"].detail
        assert sandbox.run("echo hi > /dev/null && touch /dev/x").exit_code == 0


def test_a_terminal_is_had_by_its_streams_and_not_by_dev_tty() -> None:
    with Sandbox.create(backend="gvisor", embedded=True) as sandbox:
        script = "tty; echo x > /dev/tty; seq 3 | TERM=xterm less -E; git credential fill"
        asked = "protocol=https\\nhost=x\\n\\n"
        script = f"printf '{asked}' >asked; {script} <asked; printf '#!/bin/sh\\necho me' >ask"
        script += "; chmod +x ask; GIT_ASKPASS=./ask git credential fill <asked"
        with sandbox.start(script, pty=(30, 100), timeout=100) as process:
            text = "".join(chunk.text for chunk in process)
    assert text.startswith("/dev/pts/0\r\n") and "/dev/tty: Input/output error" in text
    assert "1\r\n2\r\n3\r\n" in text
    assert "could not read Username for 'https://x': Input/output error" in text
    assert text.endswith("username=me\r\npassword=me\r\n")
