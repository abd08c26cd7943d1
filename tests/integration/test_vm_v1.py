"""Protocol v1 in a virtual machine whose PID 1 we are: the recorded exchanges, and every defect of
the first agent."""

import base64
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import boot
from tests.vm.boot import Machine, eventually
from tests.vm.debian import Unavailable
from tests.vm.lines import Lines

VECTORS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data/guest-v1.jsonl").read_text().splitlines()
]
MIB = 1 << 20
pytestmark = pytest.mark.timeout(1800)  # what is emulated takes its time beside others


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    try:
        guest = boot.image()
    except Unavailable as missing:
        pytest.skip(str(missing))
    with boot.booted(guest) as machine:
        machine.open().close()
        yield machine


@pytest.fixture
def client(machine: Machine) -> Iterator[Lines]:
    with Lines(machine.open()) as client:
        yield client


def sleepers(client: Lines, seconds: int) -> int:
    """How many processes of the machine sleep for so long."""
    words = str(seconds)
    # No process of its own for each that it looks at, and it does not find its own command line.
    pattern = f"{words[:-1]}[{words[-1]}]"
    return int(client.sh(f"grep -zlx '{pattern}' /proc/[0-9]*/cmdline 2>/dev/null | wc -l"))


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_recorded_exchange_is_repeated(client: Lines, vector: dict[str, Any]) -> None:
    client.send(base64.b64decode(vector["request_b64"]))
    client.stream.shutdown(socket.SHUT_WR)
    got = b"".join(iter(client.line, b"")).decode()
    marker = '"error":"Invalid request: '
    if marker in vector["reply"]:
        # What follows is the wording of another JSON library.
        assert got.partition(marker)[:2] == vector["reply"].partition(marker)[:2]
        assert got.count("\n") == 1
    else:
        assert got == vector["reply"]


def test_the_agent_is_a_child_of_the_init_that_it_is_itself(client: Lines) -> None:
    assert "start.pyc" in client.sh("cat /proc/1/cmdline")
    parent = client.sh("echo $PPID").strip()
    assert parent != "1"
    assert client.sh(f"grep PPid /proc/{parent}/status").split() == ["PPid:", "1"]
    assert client.sh(f"cat /proc/{parent}/oom_score_adj") == "-1000\n"
    assert client.sh("cat /proc/self/oom_score_adj") == "0\n"


def test_commands_are_root_in_the_root_directory(client: Lines) -> None:
    assert client.sh("id -u; pwd; umask; hostname") == "0\n/\n0022\nagentd-vm\n"
    assert client.sh("cat /proc/self/cgroup") == "0::/\n"


def test_what_a_command_needs_is_there(client: Lines) -> None:
    mounts = client.sh("cut -d' ' -f2,3 /proc/mounts")
    for line in (
        "/proc proc", "/sys sysfs", "/dev devtmpfs", "/dev/pts devpts", "/tmp tmpfs", "/run tmpfs",
        "/dev/shm tmpfs", "/sys/fs/cgroup cgroup2", "/workspace tmpfs",
    ):  # fmt: skip
        assert f"{line}\n" in mounts
    links = "for name in fd stdin stdout stderr; do readlink /dev/$name; done"
    assert client.sh(links).split() == [
        "/proc/self/fd", *(f"/proc/self/fd/{n}" for n in range(3))
    ]  # fmt: skip
    assert client.sh("cat /sys/class/net/lo/carrier") == "1\n"
    assert client.sh("stat -c %a /tmp /dev/shm /dev/pts/ptmx") == "1777\n1777\n666\n"
    assert client.sh("cat /sys/fs/cgroup/cgroup.controllers").split() >= ["cpu", "memory", "pids"]


# --- the first agent's defects ---


def test_stdin_larger_than_a_pipe_is_pumped_while_the_child_writes(client: Lines) -> None:
    text = "x" * (2 * MIB)
    assert client.run("cat", stdin=text)["stdout"] == text.encode()


def test_a_child_gets_no_descriptor_of_the_agents(client: Lines) -> None:
    assert client.sh("ls /proc/$$/fd; :").split() == ["0", "1", "2"]
    forged = '{"exit_code":0,"stdout":"Zm9yZ2Vk","stderr":"","error":null}'
    script = f"for fd in 3 4 5 6 7 8 9; do echo '{forged}' >&$fd; done 2>/dev/null; echo true"
    assert client.sh(script) == "true\n"
    assert client.sh("echo next") == "next\n"


def test_a_child_cannot_take_the_next_request(client: Lines) -> None:
    client.send(
        {"command": "sh", "args": ["-c", "for fd in 3 4 5 6; do head -c1 <&$fd; done 2>&-; :"]},
        {"command": "echo", "args": ["second"]},
    )
    assert client.reply()["stdout"] == b""
    assert client.reply()["stdout"] == b"second\n"


def test_a_daemonised_child_does_not_keep_the_connection(client: Lines) -> None:
    client.sh("setsid sleep 600 >/dev/null 2>&1 &")
    client.stream.shutdown(socket.SHUT_WR)
    assert client.line() == b""


def test_a_grandchild_with_the_pipes_does_not_hold_the_reply(client: Lines) -> None:
    pid = client.sh("sleep 600 & echo $!").strip()
    assert client.sh(f"kill -0 {pid} && kill {pid} && echo was there") == "was there\n"


def test_orphans_leave_no_zombies(client: Lines) -> None:
    assert client.sh("for n in $(seq 220); do (true & ); done; echo done") == "done\n"
    count = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l"
    assert eventually(lambda: client.sh(count) == "0\n")


def test_a_client_that_leaves_takes_its_command_along(machine: Machine, client: Lines) -> None:
    with Lines(machine.open()) as other:
        other.send({"command": "sleep", "args": ["86401"]})
        assert eventually(lambda: sleepers(client, 86401) == 1)
    assert eventually(lambda: sleepers(client, 86401) == 0)


def test_an_idle_client_holds_up_nobody(machine: Machine) -> None:
    with (
        Lines(machine.open()) as idle,
        Lines(machine.open()) as half,
        Lines(machine.open()) as last,
    ):
        half.send(b'{"command":')
        assert last.sh("echo served") == "served\n"
        half.send(b'"echo"}\n')
        assert half.reply()["stdout"] == b"\n"
        assert idle.sh("echo still") == "still\n"


def test_forty_clients_are_served_at_once(machine: Machine) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Lines(machine.open())) for _ in range(40)]
        for number, client in enumerate(clients):
            client.send({"command": "echo", "args": [str(number)]})
        for number, client in reversed(list(enumerate(clients))):
            assert client.reply()["stdout"] == b"%d\n" % number


def test_connections_beyond_the_bound_wait_for_their_turn(machine: Machine) -> None:
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(machine.open()) for _ in range(150)]
        last = Lines(streams.pop())
        last.send({"command": "echo", "args": ["last"]})
        for stream in streams:
            stream.close()
        assert last.reply()["stdout"] == b"last\n"


def test_quick_connections_do_no_harm(machine: Machine, client: Lines) -> None:
    for _ in range(200):
        machine.open().close()
    assert client.sh("echo on") == "on\n"


def test_output_is_bounded_and_the_machine_lives(client: Lines) -> None:
    reply = client.run("dd", "if=/dev/zero", "bs=1M")
    assert (reply["exit_code"], len(reply["stdout"])) == (-1, 64 * MIB)
    assert reply["error"] == f"output limit of {64 * MIB} bytes exceeded"
    assert client.sh("echo on") == "on\n"


def test_clients_that_do_not_read_cannot_take_the_machines_memory(machine: Machine) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Lines(machine.open())) for _ in range(5)]
        for client in clients:
            # In large pieces: each piece costs an emulated machine some ten milliseconds.
            client.send({"command": "dd", "args": ["if=/dev/zero", "bs=1M", "count=60"]})
        with Lines(machine.open()) as other:
            for client in clients:
                assert client.stream.recv(1, socket.MSG_PEEK)
            assert other.sh("echo on") == "on\n"
        errors = [client.reply()["error"] for client in clients]
    # All of them at once held more than the machine has, and its kernel panicked.
    assert any((error or "").startswith("output limit of ") for error in errors)


def test_root_may_make_a_device_in_tmp_and_use_it(client: Lines) -> None:
    script = "mknod /tmp/null c 1 3 && echo x >/tmp/null && rm /tmp/null && echo made"
    assert client.sh(script) == "made\n"


def test_a_line_without_end_is_bounded(client: Lines) -> None:
    for _ in range(24):
        client.send(b"x" * MIB)
    client.send(b'\n{"command":"echo"}\n')
    assert client.reply()["error"].startswith("Invalid request: line is over the limit of")
    assert client.reply()["stdout"] == b"\n"


def test_a_line_of_millions_of_values_does_not_take_the_machines_memory(client: Lines) -> None:
    """Made of it, they took more than the machine has, and its kernel panicked."""
    client.send(b'{"command":"true","x":[')
    for _ in range(12):
        client.send(b"{}," * (MIB // 3))
    client.send(b"0]}\n")
    assert client.reply()["error"].startswith("Invalid request: it has over ")
    assert client.sh("echo on") == "on\n"


def test_a_time_limit_takes_the_process_group(client: Lines) -> None:
    reply = client.run("sh", "-c", "sleep 86402 & sleep 86402", timeout_ms=500)
    assert (reply["exit_code"], reply["error"]) == (-1, "time limit of 500 ms exceeded")
    assert eventually(lambda: sleepers(client, 86402) == 0)


def test_signals_to_init_do_nothing(client: Lines) -> None:
    assert client.sh("kill -9 1; kill -STOP 1; kill -SEGV 1; echo on") == "on\n"


def test_an_agent_that_is_killed_is_started_again(machine: Machine, client: Lines) -> None:
    client.send({"command": "sh", "args": ["-c", "sleep 86403 & kill -9 $PPID; sleep 600"]})
    assert client.line() == b""
    # Its listener outlives its connections by a moment, and takes one more with it.
    assert eventually(lambda: _answers(machine)), machine.log()
    with Lines(machine.open()) as after:
        assert after.sh("echo again") == "again\n"
        assert sleepers(after, 86403) == 0
    for number in range(2):
        with Lines(machine.port(number)) as port:
            assert port.sh("echo here too") == "here too\n"


def _answers(machine: Machine) -> bool:
    with Lines(machine.open()) as lines, contextlib.suppress(ConnectionError):
        lines.send({"command": "true"})
        return bool(lines.line())
    return False


def test_a_flood_of_requests_is_answered_one_by_one(client: Lines) -> None:
    client.send(*([b"[]\n"] * 3000))
    for _ in range(3000):
        assert b'"Invalid request' in client.line()
    assert client.sh("echo on") == "on\n"


def test_random_bytes_do_no_harm(machine: Machine, client: Lines) -> None:
    for _ in range(20):
        with machine.open() as stream, contextlib.suppress(ConnectionError):
            stream.sendall(os.urandom(4096) + b"\n")
            stream.shutdown(socket.SHUT_WR)
            while stream.recv(1 << 16):
                pass
    assert client.sh("echo on") == "on\n"


def test_sigterm_to_init_ends_the_machine(machine: Machine, client: Lines) -> None:
    """The last of the module: the machine is gone afterwards."""
    client.send({"command": "sh", "args": ["-c", "kill -TERM 1; sleep 600"]})
    assert machine.wait() == 0, machine.log()
