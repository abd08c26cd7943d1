"""The agent of a virtual machine over v2: its user, sys.setup, its limits, its protection."""

import base64
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.vm import boot
from tests.vm.boot import Machine, eventually
from tests.vm.debian import Unavailable
from tests.vm.lines import Lines

from agentd.guest import wire
from agentd.model.errors import BackendLost, InvalidInput, OperationFailed
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, Pty
from agentd.transport.guest import Guest

MIB = 1 << 20
pytestmark = pytest.mark.timeout(1800)  # what is emulated takes its time beside others
NAMES = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id"
YEAR_2040_NS = 2_208_988_800 * 10**9
IDENTITY = {
    "hostname": "box-1",
    "machine_id": "0123456789abcdef" * 2,
    "boot_id": "01234567-89ab-4def-8123-456789abcdef",
}


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
def guest(machine: Machine) -> Iterator[Guest]:
    guest = Guest(machine.open, passes_descriptors=False, handshake_timeout=120, answer_timeout=120)
    yield guest
    guest.close()


class Ended:
    def __init__(self, outcome: Any) -> None:
        self.exit, self.stdout, self.stderr, _ = outcome
        self.code = self.exit.exit_code
        self.cause = self.exit.cause.code
        self.text = self.stdout.decode()


def run(guest: Guest, *argv: str, **options: Any) -> Ended:
    return Ended(guest.run(ExecRequest(argv, **options)))


def sh(guest: Guest, script: str, **options: Any) -> Ended:
    return run(guest, "sh", "-c", script, **options)


def setup(guest: Guest, **fields: object) -> dict[str, Any]:
    return guest.call("sys.setup", **fields)


def entropy() -> str:
    return base64.b64encode(os.urandom(64)).decode()


# --- before sys.setup ---


def test_commands_run_as_the_sandboxes_user(guest: Guest) -> None:
    assert sh(guest, "id -un; id -u; id -g; pwd; echo ~").text == (
        "sandbox\n1000\n1000\n/workspace\n/home/sandbox\n"
    )
    names = {line.partition("=")[0] for line in run(guest, "env").text.splitlines()}
    assert names == {"HOME", "LANG", "LOGNAME", "PATH", "USER"}
    assert sh(guest, "touch here ~/there /tmp/x /dev/shm/x && stat -c %u here").text == "1000\n"
    assert sh(guest, "touch /x").code != 0
    assert sh(
        guest, "grep Cap /proc/self/status | sort -u -k2 | grep -vc 0000000000000000"
    ).text == (
        "1\n"  # the bounding set, of which an exec gives an ordinary user nothing
    )


def test_a_command_may_be_another_user(guest: Guest) -> None:
    with guest._call({"op": "exec", "argv": ["sh", "-c", "id -u; echo $USER"], "user": 0}) as call:
        output = b""
        while True:
            kind, payload = call.next()
            if kind == wire.STDOUT:
                output += payload
            elif b'"exited"' in payload:
                break
        call.ended = True
    assert output == b"0\nroot\n"


def test_files_are_the_users_and_only_theirs(guest: Guest) -> None:
    guest.files.write("/workspace/script", b"#!/bin/sh\necho ran\n", mode=0o755)
    assert sh(guest, "echo '# more' >> script && ./script; stat -c %u:%g script").text == (
        "ran\n1000:1000\n"
    )
    with pytest.raises(OperationFailed, match="ermission denied"):
        guest.files.read("/etc/shadow")
    with pytest.raises(OperationFailed, match="ermission denied"):
        guest.files.write("/etc/passwd.new", b"x")
    sh(guest, "mkdir -p dir && echo own > dir/file && chmod 700 dir && chmod 600 dir/file")
    assert guest.files.read("/workspace/dir/file") == b"own\n"


def test_a_terminal_is_the_users(guest: Guest) -> None:
    outcome = guest.run(ExecRequest(("sh", "-c", "stat -c %u $(tty); stty size"), pty=Pty(30, 100)))
    assert Ended(outcome).text.split() == ["1000", "30", "100"]


def test_the_agent_is_out_of_the_users_reach(guest: Guest, machine: Machine) -> None:
    with Lines(machine.open()) as client:
        agent = client.sh("echo $PPID").strip()
    for attack in (
        f"kill -9 {agent}", f"kill -STOP {agent}", "kill -9 1", f"cat /proc/{agent}/environ",
        f"ls /proc/{agent}/fd", f"head -c1 /proc/{agent}/mem", "cat /run/agentd/state.json",
        f"echo 0 > /proc/{agent}/oom_score_adj", "echo 0 > /sys/fs/cgroup/cgroup.procs",
        "reboot -f", "mount -t tmpfs none /tmp", "hostname other", "umount /workspace",
        "echo b > /proc/sysrq-trigger", "cat /dev/vport1p1", "cat /dev/mem", "insmod /x.ko",
        "date -s 2000-01-01; test $(date +%Y) = 2000", "touch /x", "touch /etc/x", "rm /init",
    ):  # fmt: skip
        assert sh(guest, attack).code != 0, attack
    assert guest.call("sys.ping")["unix_ns"] > 0


# --- sys.setup ---


@pytest.mark.parametrize(
    "fields",
    [
        {"surprise": 1},
        {"limits": {"speed": 1}},
        {"limits": {"pids": 0}},
        {"limits": {"pids": True}},
        {"limits": 5},
        {"hostname": "a b"},
        {"hostname": "-a"},
        {"hostname": "a" * 65},
        {"machine_id": "x" * 32},
        {"boot_id": "1-2-3-4-5"},
        {"entropy": ""},
        {"entropy": "!!"},
        {"unix_ns": -1},
        {"cpus": 0},
        {"cpus": "1"},
        {"user": -1},
        {"env": {"A": 1}},
        {"net": {"address": "10.0.0.1"}},
        {"net": {"address": "10.0.0.1/33"}},
        {"net": {"address": "10.0.0.1/8", "gateway": "x"}},
        {"net": {"address": "10.0.0.1/8", "dns": ["nameserver"]}},
        {"net": {"address": "10.0.0.1/8", "device": "no-such-card"}},
    ],
)
def test_a_setup_that_cannot_be_is_refused(guest: Guest, fields: dict[str, object]) -> None:
    before = sh(guest, "hostname").text
    good: dict[str, object] = {} if "net" in fields else {"hostname": "never"}
    with pytest.raises(OperationFailed):
        setup(guest, **{**good, **fields})
    assert sh(guest, "hostname").text == before


def test_setup_gives_the_machine_an_identity(guest: Guest) -> None:
    answer = setup(guest, entropy=entropy(), unix_ns=YEAR_2040_NS, **IDENTITY)
    assert answer["controls"] == [
        "entropy", "clock", "hostname", "machine_id", "boot_id", "memory"
    ]  # fmt: skip
    for _ in range(2):
        got = sh(
            guest, "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; date +%Y"
        ).text
        assert got.split() == [*IDENTITY.values(), "2040"]
        assert sh(guest, "grep -c box-1 /etc/hosts; cat /etc/hostname").text == "1\nbox-1\n"
        setup(guest)
    again = {
        "hostname": "box-2",
        "machine_id": "f" * 32,
        "boot_id": "ffffffff-ffff-4fff-8fff-ffffffffffff",
    }
    setup(guest, entropy=entropy(), unix_ns=time.time_ns(), **again)
    got = sh(guest, NAMES).text
    assert got.split() == list(again.values())
    assert sh(guest, "grep -c /etc/machine-id /proc/mounts").text == "1\n"


def test_setup_gives_a_user_and_an_environment(guest: Guest) -> None:
    setup(guest, user=4321, env={"BOX": "box", "LANG": "C"})
    assert sh(guest, "id -u; echo $BOX $LANG; touch ~/y own && stat -c %u own").text == (
        "4321\nbox C\n4321\n"
    )
    guest.files.write("/workspace/theirs", b"")
    assert run(guest, "stat", "-c", "%u", "theirs").text == "4321\n"
    setup(guest, user=0, env={})
    assert sh(guest, "id -un; echo $USER; touch /etc/x && rm /etc/x && echo wrote").text == (
        "root\nroot\nwrote\n"
    )
    setup(guest, user=1000)
    assert run(guest, "id", "-u").text == "1000\n"


def test_setup_brings_a_card_up(guest: Guest) -> None:
    net = {"address": "10.0.2.15/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3"], "device": "lo:1"}
    assert setup(guest, net=net)["controls"] == ["memory", "network"]
    assert "inet 10.0.2.15/24" in run(guest, "ip", "addr", "show", "lo").text
    assert "default via 10.0.2.2" in run(guest, "ip", "route").text
    assert run(guest, "cat", "/etc/resolv.conf").text == "nameserver 10.0.2.3\n"
    setup(guest, net=net)


# --- limits ---


@pytest.fixture
def limited(guest: Guest) -> Guest:
    limits = {"memory": 64 * MIB, "pids": 40, "disk": 8 * MIB, "open_files": 64}
    answer = setup(guest, limits=limits, cpus=0.5)
    assert answer == {
        "controls": ["memory", "pids", "cpus", "disk", "open_files"],
        "limits": limits | {"cpus": 0.5},
    }
    return guest


def test_commands_are_born_in_the_group_and_the_agent_is_not(
    limited: Guest, machine: Machine
) -> None:
    assert run(limited, "cat", "/proc/self/cgroup").text == "0::/sandbox\n"
    with Lines(machine.open()) as client:
        assert client.sh("cat /proc/self/cgroup; cat /proc/$PPID/cgroup") == "0::/sandbox\n0::/\n"
        files = "memory.max memory.swap.max pids.max cpu.max"
        got = client.sh(f"cd /sys/fs/cgroup/sandbox; cat {files}").split()
        assert [word for word in got if word != "0"] == [str(64 * MIB), "40", "50000", "100000"]


def test_a_memory_bomb_ends_with_its_cause(limited: Guest) -> None:
    bomb = "b = bytearray(200 << 20); b[::4096] = b'x' * len(b[::4096])"
    ended = run(limited, "python3", "-c", bomb)
    assert (ended.cause, ended.exit.signal) == (CauseCode.OOM, 9)
    assert ended.exit.cause.remediation
    assert run(limited, "echo", "on").text == "on\n"


def test_without_the_limit_the_machine_is_the_limit_and_lives(guest: Guest) -> None:
    held = setup(guest)["limits"]["memory"]
    assert 64 * MIB < held < 256 * MIB
    bomb = "kept = []\nwhile True: kept.append(b'x' * (1 << 20))"
    assert run(guest, "python3", "-c", bomb).cause is CauseCode.OOM
    assert run(guest, "echo", "on").text == "on\n"


def test_a_fork_bomb_ends_with_its_cause(limited: Guest) -> None:
    ended = sh(limited, "for n in $(seq 60); do sleep 600 & done; exit 3")
    assert ended.cause is CauseCode.PIDS_LIMIT
    assert ended.exit.cause.remediation
    counters = limited.call("sys.counters")
    assert counters["counters"]["pids_limit"] > 0
    # The group is full: the agent itself still answers, and says why no command starts.
    with pytest.raises(InvalidInput, match="Resource temporarily unavailable"):
        while True:
            limited.start_detached(ExecRequest(("sleep", "600")))
    limited.call("signal", signal=9, target="sandbox")
    assert eventually(lambda: run(limited, "true").code == 0)


def test_a_command_that_fails_by_itself_has_no_limits_cause(limited: Guest) -> None:
    assert sh(limited, "exit 3").cause is CauseCode.EXITED
    assert sh(limited, "kill -9 $$").cause is CauseCode.SIGNALLED


def test_one_disk_bounds_every_writable_place(limited: Guest) -> None:
    for place in ("/workspace", "/tmp", "/home/sandbox", "/dev/shm"):
        ended = sh(limited, f"head -c 16000000 /dev/zero > {place}/big")
        assert ended.cause is CauseCode.DISK_FULL, place
        freed = sh(limited, f"rm {place}/big && echo small > {place}/file")
        assert (freed.code, freed.stderr) == (0, b"")
    many = sh(limited, "for n in $(seq 5000); do : > f$n || exit 1; done; exit 0")
    assert many.cause is CauseCode.DISK_FULL
    assert sh(limited, "rm -f f*").code == 0


def test_open_files_are_bounded(limited: Guest) -> None:
    assert sh(limited, "ulimit -n; ulimit -Hn").text == "64\n64\n"


def test_an_agent_that_is_killed_remembers_the_setup(limited: Guest, machine: Machine) -> None:
    setup(limited, hostname="box-3")
    with Lines(machine.open()) as client:
        client.send({"command": "sh", "args": ["-c", "kill -9 $PPID; sleep 600"]})
        assert client.line() == b""
    assert eventually(lambda: _answers(limited))
    script = "cat /proc/self/cgroup; ulimit -n; id -u; hostname"
    assert sh(limited, script).text == "0::/sandbox\n64\n1000\nbox-3\n"


def _answers(guest: Guest) -> bool:
    try:
        return guest.call("sys.ping")["unix_ns"] > 0
    except BackendLost:
        return False


def test_freezing_stops_commands_and_not_the_agent(guest: Guest) -> None:
    guest.start_detached(ExecRequest(("sleep", "600"), tag="frozen"))
    state = "cut -d' ' -f3 /proc/{}/stat"
    pid = next(p.pid for p in guest.processes() if p.tag == "frozen")
    guest.call("sys.freeze")
    assert sh(guest, state.format(pid)).text == "T\n"
    guest.call("sys.thaw")
    assert sh(guest, state.format(pid)).text == "S\n"
    guest.signal("frozen", 9)


# --- virtio ports beside vsock ---


def test_a_port_serves_host_after_host_at_once(machine: Machine) -> None:
    for number in range(10):
        with machine.port() as stream:
            guest = Guest(lambda stream=stream: stream.dup(), passes_descriptors=False)  # type: ignore[misc]
            assert run(guest, "echo", str(number)).text == f"{number}\n"
            guest.close()


def test_a_host_that_left_in_the_middle_of_a_command_has_no_heir(machine: Machine) -> None:
    with machine.port() as stream:
        stream.sendall(wire.HELLO)
        request = {"op": "exec", "argv": ["sleep", "86404"]}
        stream.sendall(wire.encode_json(wire.REQUEST, 1, request))
        assert b"\n" in stream.recv(1 << 16)
    with machine.port() as stream, Lines(machine.open()) as client:
        stream.sendall(wire.HELLO)
        # What the machine had sent to the host before, and its emulator has kept, comes first.
        got = b""
        while b'{"agentd":2,' not in got or not got.endswith(b"\n"):
            got += stream.recv(1 << 16)
        script = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done 2>/dev/null"
        assert eventually(lambda: "sleep 86404 " not in client.sh(script).splitlines())


def test_a_hello_at_a_frames_boundary_is_the_next_hosts(machine: Machine) -> None:
    with machine.port() as stream, stream.makefile("rb") as answers:
        for _ in range(3):
            stream.sendall(wire.HELLO)
            assert answers.readline().startswith(b'{"agentd":2,')
            stream.sendall(wire.encode_json(wire.REQUEST, 1, {"op": "sys.ping"}))
            header = wire.HEADER.unpack(answers.read(wire.HEADER.size))
            assert b'"result"' in answers.read(header[0])


def test_shutdown_ends_the_machine(machine: Machine, guest: Guest) -> None:
    """The last of the module: the machine is gone afterwards."""
    guest.start_detached(ExecRequest(("sh", "-c", "trap '' TERM; while :; do sleep 9; done")))
    guest.call("sys.shutdown")
    assert machine.wait() == 0, machine.log()
