"""Commands over a real connection: output, input, limits, causes, descriptors, terminals."""

import errno
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from agentd.guest import processes, wire
from agentd.linux import abi
from agentd.linux.kernel import KERNEL

MIB = 1 << 20
DAY_MS = 86_400_000


def exists(pid: int) -> bool:
    """Running: a zombie does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pid: int) -> None:
    for _ in range(12_000):
        if not exists(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} is still there")


def test_streams_and_exit_code(client: Any) -> None:
    channel = client.request("exec", argv=["sh", "-c", "echo out; echo err >&2; exit 3"])
    ended = client.wait(channel)
    assert (ended["event"], ended["code"], ended["signal"]) == ("exited", 3, None)
    assert ended["cause"] == "exited"
    assert ended["truncated"] is False
    assert set(ended["usage"]) == {"wall_ms", "cpu_ms", "peak_memory_bytes"}
    assert client.stdout(channel) == b"out\n"
    assert client.stderr(channel) == b"err\n"
    assert [event["event"] for event in client.events[channel]] == ["started", "exited"]


def test_a_signal_is_its_own_field(client: Any) -> None:
    ended = client.run("sh", "-c", "kill -TERM $$")
    assert (ended["code"], ended["signal"], ended["cause"]) == (None, signal.SIGTERM, "signalled")


def test_sigsys_is_a_seccomp_violation(client: Any) -> None:
    assert client.run("sh", "-c", "kill -SYS $$")["cause"] == "seccomp_violation"


@pytest.mark.parametrize(
    ("fields", "stage", "code"),
    [
        ({"argv": ["no-such-program"]}, "exec", errno.ENOENT),
        ({"argv": [""]}, "exec", errno.ENOENT),
        ({"argv": []}, "exec", errno.ENOENT),
        ({"argv": ["/etc"]}, "exec", errno.EACCES),
        ({"argv": ["true"], "cwd": "/no/such"}, "cwd", errno.ENOENT),
        ({"argv": ["true"], "cwd": "/etc/passwd"}, "cwd", errno.ENOTDIR),
        ({"argv": "true"}, "request", errno.EINVAL),
        ({"argv": ["true", "a\0b"]}, "request", errno.EINVAL),
        ({"argv": ["true"], "limits": {"speed": 1}}, "request", errno.EINVAL),
        ({"argv": ["true"], "fds": ["stdout"]}, "request", errno.EINVAL),
        ({"argv": ["no-such-program"], "limits": {"open_files": 64}}, "exec", errno.ENOENT),
    ],
)
def test_a_command_that_cannot_start_has_failed(
    client: Any, fields: dict[str, Any], stage: str, code: int
) -> None:
    failed = client.wait(client.request("exec", **fields))
    assert (failed["event"], failed["stage"], failed["errno"]) == ("failed", stage, code)
    assert client.run("true")["code"] == 0


def test_a_script_without_an_interpreter_line_is_refused(client: Any, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("echo hi\n")
    script.chmod(0o755)
    assert client.run(str(script))["errno"] == errno.ENOEXEC
    script.chmod(0o644)
    assert client.run(str(script))["errno"] == errno.EACCES


def test_the_requests_path_decides(client: Any, tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    channel = client.request("exec", argv=["only-here"], env={"PATH": f"/none:{tmp_path}"})
    assert client.wait(channel)["code"] == 0
    assert client.stdout(channel) == b"found\n"


@pytest.mark.parametrize("limits", [{}, {"open_files": 64}])
def test_environment_and_directory(client: Any, limits: dict[str, int], tmp_path: Path) -> None:
    channel = client.request(
        "exec",
        argv=["sh", "-c", "env | sort; pwd; umask"],
        env={"ONE": "1"},
        env_mode="replace",
        cwd=str(tmp_path),
        limits=limits,
    )
    client.wait(channel)
    lines = client.stdout(channel).decode().split("\n")
    assert "ONE=1" in lines
    assert not [line for line in lines if line.startswith(("HOME=", "PATH=/"))]
    assert lines[-3:] == [str(tmp_path), "0022", ""]
    where = client.request("exec", argv=["pwd"])
    client.wait(where)
    assert client.stdout(where) == b"/\n"


def test_odd_names_of_variables(client: Any) -> None:
    channel = client.request(
        "exec", argv=["cat", "/proc/self/environ"], env={"": "e", "A=B": "c"}, env_mode="replace"
    )
    client.wait(channel)
    assert sorted(client.stdout(channel).split(b"\0")) == [b"", b"=e", b"A=B=c"]


@pytest.mark.parametrize("limits", [{}, {"open_files": 64}])
def test_a_child_starts_clean(client: Any, limits: dict[str, int]) -> None:
    script = (
        "ls /proc/self/fd; grep -E '^(SigBlk|SigIgn)' /proc/self/status; "
        "cut -d' ' -f6 /proc/$$/stat"
    )
    channel = client.request("exec", argv=["sh", "-c", script], limits=limits)
    client.wait(channel)
    *fds, blocked, ignored, session = client.stdout(channel).decode().split("\n")[:-1]
    assert fds == ["0", "1", "2", "3"], "the last is the directory that ls reads"
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) == 0
    assert int(session) == client.events[channel][0]["pid"]


def test_megabytes_both_ways_at_once(client: Any) -> None:
    data = os.urandom(MIB)
    channel = client.request("exec", argv=["cat"], stdin="stream")
    sent = 0
    while sent < len(data):
        client.until(lambda: client.credit[channel])
        part = data[sent : sent + min(client.credit[channel], 1 << 16)]
        client.credit[channel] -= len(part)
        client.send(wire.STDIN, channel, part)
        sent += len(part)
    client.send(wire.STDIN_EOF, channel)
    assert client.wait(channel)["code"] == 0
    assert client.stdout(channel) == data


def test_a_child_that_never_reads_is_no_error(client: Any) -> None:
    channel = client.request("exec", argv=["sleep", "0.1"], stdin="stream")
    client.send(wire.STDIN, channel, b"x" * (200 << 10))
    assert client.wait(channel)["code"] == 0


def test_a_grandchild_with_the_pipe_does_not_hold_the_answer(client: Any) -> None:
    channel = client.request("exec", argv=["sh", "-c", "sleep 600 & echo $!"])
    assert client.wait(channel)["code"] == 0
    grandchild = int(client.stdout(channel))
    assert exists(grandchild)
    os.kill(grandchild, signal.SIGKILL)
    wait_gone(grandchild)


def test_a_grandchild_that_keeps_writing_does_not_hold_the_answer(client: Any) -> None:
    channel = client.request("exec", argv=["sh", "-c", "yes & echo $! >&2; sleep 0.2"])
    assert client.wait(channel)["code"] == 0
    # Its pipe has no reader any more.
    wait_gone(int(client.stderr(channel)))


def test_wall_time_limit(client: Any) -> None:
    argv, said = ["sh", "-c", "sleep 600 & echo $!; wait"], b""
    for milliseconds in (200, 1000, 5000, 25_000):  # a busy machine may need more until it is up
        channel = client.request("exec", argv=argv, limits={"wall_ms": milliseconds})
        ended = client.wait(channel)
        assert (ended["signal"], ended["cause"]) == (signal.SIGKILL, "timeout")
        if said := client.stdout(channel):
            break
    wait_gone(int(said))


def test_cpu_limit(client: Any) -> None:
    ended = client.run("sh", "-c", "while :; do :; done", limits={"cpu_s": 1})
    assert (ended["signal"], ended["cause"]) == (signal.SIGXCPU, "timeout")


@pytest.mark.parametrize("limit", [0, 1, 65536, 100_000])
def test_output_limit_is_exact(client: Any, limit: int) -> None:
    channel = client.request("exec", argv=["yes"], limits={"output": limit})
    ended = client.wait(channel)
    assert (ended["cause"], ended["truncated"]) == ("output_limit", True)
    assert len(client.stdout(channel)) == limit


def test_output_of_just_the_limit_is_whole(client: Any) -> None:
    channel = client.request("exec", argv=["echo", "12345"], limits={"output": 6})
    ended = client.wait(channel)
    assert (ended["cause"], ended["truncated"]) == ("exited", False)
    assert client.stdout(channel) == b"12345\n"


def test_resource_limits_reach_the_child(client: Any, tmp_path: Path) -> None:
    limits = {"open_files": 77, "processes": 55, "file_size": 4096, "address_space": 1 << 30}
    channel = client.request("exec", argv=["sh", "-c", "ulimit -n; ulimit -v"], limits=limits)
    client.wait(channel)
    assert client.stdout(channel) == b"77\n1048576\n"
    copy = ["dd", "if=/dev/zero", f"of={tmp_path}/file", "bs=8192", "count=2"]
    assert client.run(*copy, limits={"file_size": 4096})["signal"] == signal.SIGXFSZ
    assert (tmp_path / "file").stat().st_size == 4096


@pytest.mark.root
def test_another_user(client: Any) -> None:
    if os.geteuid():
        pytest.skip("needs uid 0")
    channel = client.request("exec", argv=["id"], user=12345)
    client.wait(channel)
    assert client.stdout(channel).startswith(b"uid=12345 gid=12345 groups=12345")


def test_cancel(client: Any) -> None:
    channel = client.request("exec", argv=["sleep", "600"])
    client.control(channel, op="cancel")
    ended = client.wait(channel)
    assert (ended["signal"], ended["cause"]) == (signal.SIGKILL, "cancelled")


def test_signal_to_the_group(client: Any) -> None:
    channel = client.request("exec", argv=["sh", "-c", "sleep 600 & echo $!; wait"])
    client.until(lambda: client.stdout(channel).endswith(b"\n"))
    client.control(channel, op="signal", signal=int(signal.SIGTERM))
    assert client.wait(channel)["signal"] == signal.SIGTERM
    wait_gone(int(client.stdout(channel)))


def test_signal_by_tag_and_list(client: Any) -> None:
    channel = client.request("exec", argv=["sleep", "600"], tag="sleeper")
    listed = client.wait(client.request("list"))["processes"]
    assert [(entry["tag"], entry["state"]) for entry in listed] == [("sleeper", "running")]
    answer = client.wait(client.request("signal", tag="sleeper", signal=int(signal.SIGINT)))
    assert answer["event"] == "result"
    assert client.wait(channel)["signal"] == signal.SIGINT
    unknown = client.wait(client.request("signal", tag="sleeper", signal=int(signal.SIGINT)))
    assert unknown["errno"] == errno.ESRCH


def test_signal_to_the_sandbox_stays_among_our_commands(client: Any) -> None:
    bystander = os.fork()
    if bystander == 0:
        signal.pause()
    try:
        first = client.request("exec", argv=["sleep", "600"])
        second = client.request("exec", argv=["sleep", "600"])
        client.control(first, op="signal", signal=int(signal.SIGTERM), target="sandbox")
        assert client.wait(first)["signal"] == signal.SIGTERM
        assert client.wait(second)["signal"] == signal.SIGTERM
        assert exists(bystander)
    finally:
        os.kill(bystander, signal.SIGKILL)
        os.waitpid(bystander, 0)


def test_passed_descriptors_are_not_copied_through_the_agent(client: Any) -> None:
    reader, writer = os.pipe()
    channel = client.request(
        "exec", writer, argv=["sh", "-c", "echo direct; echo pumped >&2"], fds=["stdout"]
    )
    os.close(writer)
    client.wait(channel)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"direct\n", "and its end: the agent holds no copy"
    assert client.stdout(channel) == b""
    assert client.stderr(channel) == b"pumped\n"


def test_passed_stdin(client: Any) -> None:
    reader, writer = os.pipe()
    channel = client.request("exec", reader, argv=["cat"], fds=["stdin"])
    os.close(reader)
    os.write(writer, b"hello")
    os.close(writer)
    assert client.wait(channel)["code"] == 0
    assert client.stdout(channel) == b"hello"


def test_terminal(client: Any) -> None:
    channel = client.request(
        "exec",
        argv=["sh", "-c", "stty size; trap 'stty size; exit 7' WINCH; echo go; cat; echo eof"],
        pty={"rows": 11, "cols": 22},
        stdin="stream",
    )
    client.until(lambda: b"go" in client.stdout(channel))
    client.send(wire.STDIN, channel, b"typed\n")
    # Echoed by the terminal, then written by cat.
    client.until(lambda: client.stdout(channel).count(b"typed") == 2)
    client.control(channel, op="resize", rows=33, cols=44)
    client.send(wire.STDIN_EOF, channel)
    assert client.wait(channel)["code"] == 7
    assert client.stdout(channel).startswith(b"11 22\r\n")
    assert b"33 44\r\n" in client.stdout(channel)


def test_a_terminals_end_of_file(client: Any) -> None:
    channel = client.request("exec", argv=["cat"], pty={"rows": 5, "cols": 5}, stdin="stream")
    client.send(wire.STDIN_EOF, channel)
    assert client.wait(channel)["code"] == 0


def test_orphans_are_reaped(client: Any, remote: Any) -> None:
    channel = client.request("exec", argv=["sh", "-c", "(sleep 0.2 & echo $!)"])
    client.wait(channel)
    orphan = int(client.stdout(channel))
    for _ in range(12_000):
        if not Path(f"/proc/{orphan}").exists():
            break
        time.sleep(0.01)
    assert not Path(f"/proc/{orphan}").exists(), "neither running nor a zombie"


def test_hang_up_kills_the_group(remote: Any) -> None:
    client = remote.connect()
    channel = client.request("exec", argv=["sh", "-c", "sleep 600 & echo $!; wait"])
    client.until(lambda: client.stdout(channel).endswith(b"\n"))
    client.close()
    wait_gone(int(client.stdout(channel)))
    assert remote.connect().run("true")["code"] == 0


def test_the_agents_end_takes_even_escaped_orphans_along(remote: Any) -> None:
    client = remote.connect()
    channel = client.request("exec", argv=["sh", "-c", "setsid sleep 600 & echo $!"])
    client.wait(channel)
    escaped = int(client.stdout(channel))
    assert exists(escaped)
    assert remote.end() == 0
    assert not exists(escaped)


@pytest.mark.root
def test_children_die_first_when_memory_runs_out(client: Any) -> None:
    channel = client.request("exec", argv=["sh", "-c", "sleep 0.1; cat /proc/$$/oom_score_adj"])
    client.wait(channel)
    assert client.stdout(channel) == b"500\n"


def test_an_address_space_smaller_than_the_agents(client: Any) -> None:
    ended = client.run("true", limits={"address_space": 8 << 20})
    assert (ended["event"], ended.get("code")) == ("exited", 0), ended


@pytest.mark.parametrize("milliseconds", [25 * DAY_MS, 366 * DAY_MS, (1 << 63) - 1])
def test_a_time_limit_of_more_days_than_the_kernel_counts(client: Any, milliseconds: int) -> None:
    channel = client.request("exec", argv=["cat"], stdin="stream", limits={"wall_ms": milliseconds})
    client.wait(channel, "started")
    assert client.wait(client.request("sys.ping"))["event"] == "result"
    client.send(wire.STDIN_EOF, channel)
    assert client.wait(channel)["cause"] == "exited"


def test_a_lease_of_more_days_than_the_kernel_counts(client: Any) -> None:
    assert client.wait(client.request("sys.lease", ms=366 * DAY_MS))["event"] == "result"
    assert client.run("true")["cause"] == "exited"


def test_commands_that_do_not_fit_into_one_frame_are_listed(client: Any) -> None:
    long = ["sh", "-c", "sleep 60", *("\N{EURO SIGN}" * 20_000 for _ in range(5))]
    started = [client.request("exec", argv=long, tag=f"t{number}") for number in range(3)]
    for channel in started:
        client.wait(channel, "started", "failed")
    client.wait(client.request("exec", argv=["sleep", "60"], tag="short"), "started")
    listed = client.wait(client.request("list"))["processes"]
    assert [entry["tag"] for entry in listed] == ["t0", "t1", "t2", "short"]
    assert listed[0]["argv"][-1].endswith("...")
    assert all(entry["argv"][:3] == long[:3] for entry in listed[:3])
    assert listed[3]["argv"] == ["sleep", "60"]


@pytest.mark.root
@pytest.mark.parametrize(("flags", "cause"), [(0, "disk_full"), (abi.MS_RDONLY, "exited")])
def test_a_disk_that_cannot_be_written_to_is_not_what_was_full(
    client: Any, tmp_path: Path, flags: int, cause: str
) -> None:
    KERNEL.mount("tmpfs", str(tmp_path), "tmpfs", 0, "size=64k,mode=0755")
    try:
        with pytest.raises(OSError, match="No space"), open(tmp_path / "all", "wb", 0) as file:
            while True:
                file.write(bytes(4096))
        KERNEL.mount(None, str(tmp_path), None, abi.MS_REMOUNT | flags)
        assert client.run("sh", "-c", "exit 3", cwd=str(tmp_path))["cause"] == cause
    finally:
        KERNEL.umount(str(tmp_path))


def test_so_many_commands_run_at_once(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(processes, "MAX_RUNNING", 2)
    client = request.getfixturevalue("client")  # of an agent that begins only now
    running = [client.request("exec", argv=["sleep", "600"]) for _ in range(2)]
    for channel in running:
        client.wait(channel, "started")
    refused = client.run("true")
    assert (refused["event"], refused["errno"]) == ("failed", errno.EAGAIN)
    client.control(running[0], op="cancel")
    client.wait(running[0])
    assert client.run("true")["code"] == 0
