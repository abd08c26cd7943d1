"""Where a clone of a warm Python process could betray its wall: each way, tried for real."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentd.linux import landlock
from agentd.model.limits import Limits
from agentd.model.result import CauseCode, Exit
from agentd.model.spec import ExecRequest, Pty, SandboxSpec
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.transport.guest import Guest

NPROC = """
import json, os, signal, time
started = []
try:
    while len(started) < 200:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        started.append(pid)
except OSError:
    pass
print(json.dumps(len(started)), flush=True)
input()
for pid in started:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""
PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")


class Box:
    """A wall and a client of the agent behind it."""

    def __init__(self, backend: LinuxBackend, spec: SandboxSpec) -> None:
        self.wall = backend.launch(backend.plan(spec))
        self.guest = Guest(self.wall.open_stream, passes_descriptors=True)

    def run(self, *argv: str) -> tuple[Exit, str, str]:
        end, out, err, _ = self.guest.run(ExecRequest(argv, cwd="/workspace"))
        return end, out.decode(), err.decode()

    def close(self) -> None:
        self.guest.close()
        self.wall.kill()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[LinuxBackend]:
    monkeypatch.setenv("AGENTD_TEST_CANARY", "leaked")
    backend = LinuxBackend()
    try:
        found = backend.probe()
        if not found.usable:
            pytest.skip(f"linux: {found.blockers[0].what}")
        yield backend
    finally:
        backend.close()


Make = Callable[..., Box]


@pytest.fixture
def make(backend: LinuxBackend) -> Iterator[Make]:
    made: list[Box] = []

    def create(**spec: object) -> Box:
        made.append(Box(backend, SandboxSpec(**spec)))  # type: ignore[arg-type]
        return made[-1]

    yield create
    for box in made:
        box.close()


@pytest.fixture
def box(make: Make) -> Box:
    return make()


def test_a_command_has_its_three_descriptors_and_no_other(box: Box) -> None:
    # ls itself holds one more, the directory it lists.
    script = "import os; print(sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1])"
    assert box.run(*PYTHON, script)[1] == "[0, 1, 2]\n"
    pty = ExecRequest((*PYTHON, script), pty=Pty())
    assert box.guest.run(pty)[1] == b"[0, 1, 2]\r\n"


@pytest.mark.root
def test_an_agent_holds_no_more_once_its_zygote_has_rehearsed(make: Make) -> None:
    """What the rehearsals open would be in every later sandbox."""

    def held(box: Box) -> int:
        box.run("true")  # it serves now, and has closed what it had of its request
        found = [len(os.listdir(f"/proc/{box.wall.pid}/fd"))]
        for _ in range(20):  # what it has for a moment does not count
            time.sleep(0.005)
            found.append(len(os.listdir(f"/proc/{box.wall.pid}/fd")))
        return min(found)

    first = held(make())
    # It takes the time for rehearsals after 16.
    assert [held(make()) for _ in range(20)][-1] == first


@pytest.mark.parametrize("name", ["environ", "mem", "maps", "fd", "root", "cwd", "exe"])
def test_the_agent_cannot_be_read(box: Box, name: str) -> None:
    script = (
        "import os, sys\n"
        f"path = '/proc/1/{name}'\n"
        "try:\n"
        "    look = dict.fromkeys(('root', 'cwd', 'exe'), os.readlink) | {'fd': os.listdir}\n"
        "    print(look.get(path[8:], open)(path))\n"
        "except PermissionError:\n"
        "    print('denied')\n"
    )
    assert box.run(*PYTHON, script)[1] == "denied\n"


def test_the_agents_memory_can_be_read_without_its_control() -> None:
    # The other half of the test above: it is the dumpable flag that denies.
    backend = LinuxBackend(without=frozenset({"dumpable", "seccomp", "landlock"}))
    try:
        box = Box(backend, SandboxSpec())
        try:
            end, out, err = box.run("readlink", "/proc/1/fd/0")
            assert (end.exit_code, out) == (0, "/dev/null\n"), err
        finally:
            box.close()
    finally:
        backend.close()


def test_nothing_of_the_hosts_environment_is_in_the_agent(box: Box) -> None:
    assert os.environ["AGENTD_TEST_CANARY"] == "leaked"
    if os.getuid() == 0:  # its environ is readable to nobody else
        assert b"leaked" not in Path(f"/proc/{box.wall.pid}/environ").read_bytes()
    assert "leaked" not in box.run("env")[1]


def test_signals_from_inside_do_not_reach_the_agent(box: Box) -> None:
    for number in ("KILL", "STOP", "TERM", "INT", "USR1"):
        box.run("sh", "-c", f"kill -{number} 1")
    assert box.run("echo", "alive")[1] == "alive\n"


def test_landlock_holds_on_the_mounts_of_this_very_sandbox() -> None:
    """A rule on a directory that is mounted over later would be hidden; these are not."""
    if not landlock.abi_version():
        pytest.skip("landlock: the kernel has none")
    backend = LinuxBackend()
    try:
        box = Box(backend, SandboxSpec())
        try:
            for place in ("/workspace", "/tmp", "/home/sandbox", "/dev/shm", "/var/tmp"):
                assert box.run("sh", "-c", f"echo x > {place}/f && cat {place}/f")[1] == "x\n", (
                    place
                )
            for place in ("/usr/f", "/etc/f", "/proc/sys/kernel/hostname", "/proc/self/comm"):
                end, _, err = box.run("sh", "-c", f"echo x > {place}")
                assert end.exit_code != 0, place
                assert "denied" in err or "Read-only" in err, err
        finally:
            box.close()
    finally:
        backend.close()


def test_landlock_is_what_denies_a_file_of_proc() -> None:
    backend = LinuxBackend(without=frozenset({"landlock"}))
    try:
        box = Box(backend, SandboxSpec())
        try:
            assert box.run("sh", "-c", "echo x > /proc/self/comm")[0].exit_code == 0
        finally:
            box.close()
    finally:
        backend.close()


# Each in a fresh sandbox: a module that is first imported after the pivot is not there.
OPERATIONS: dict[str, Callable[[Guest], object]] = {
    "exec": lambda guest: guest.run(ExecRequest(("true",))),
    "pty": lambda guest: guest.run(ExecRequest(("tty",), pty=Pty())),
    "stdin": lambda guest: guest.run(ExecRequest(("cat",)), stdin=b"x"),
    "timeout": lambda guest: guest.run(ExecRequest(("sleep", "99"), timeout=0.05)),
    "detach": lambda guest: guest.attach(guest.start_detached(ExecRequest(("true",)))).wait(120),
    "list": lambda guest: guest.processes(),
    "write": lambda guest: guest.files.write("/tmp/a", b"x"),
    "read": lambda guest: guest.files.read("/etc/passwd"),
    "stat": lambda guest: guest.files.stat("/tmp"),
    "fs.list": lambda guest: guest.files.list("/usr/bin"),
    "mkdir": lambda guest: guest.files.mkdir("/tmp/a/b", parents=True),
    "remove": lambda guest: (
        guest.files.mkdir("/tmp/a/b", parents=True),
        guest.files.remove("/tmp/a", recursive=True),
    ),
    "move": lambda guest: (guest.files.write("/tmp/a", b""), guest.files.move("/tmp/a", "/tmp/b")),
    "ping": lambda guest: guest.call("sys.ping"),
    "info": lambda guest: guest.call("sys.info"),
    "usage": lambda guest: guest.call("sys.usage"),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_the_first_in_a_fresh_sandbox(box: Box, operation: str) -> None:
    OPERATIONS[operation](box.guest)
    assert box.run("echo", "still")[1] == "still\n"


def test_a_tunnel_is_the_first_in_a_fresh_sandbox(box: Box) -> None:
    with pytest.raises(Exception, match=r"[Cc]onnection refused"), box.guest.tunnel(9):
        pass
    assert box.run("echo", "still")[1] == "still\n"


def test_the_death_of_the_zygote_ends_every_sandbox() -> None:
    backend = LinuxBackend()
    boxes: list[Box] = []
    try:
        if not backend.probe().usable:
            pytest.skip("linux: not usable here")
        boxes += [Box(backend, SandboxSpec()) for _ in range(3)]
        (nursery,) = backend._nurseries.values()
        os.kill(nursery.pid, signal.SIGKILL)  # our own child, not collected yet
        for box in boxes:
            assert box.wall.wait(120)
            assert not box.wall.alive()
    finally:
        for box in boxes:
            box.close()
        backend.close()


def test_four_sandboxes_each_have_the_whole_of_their_process_limit(make: Make) -> None:
    limit = 24
    boxes = [make(limits=Limits(pids=limit)) for _ in range(4)]
    counts = []
    running = []
    try:
        # All at once: each holds what it has started until the last has counted.
        for box in boxes:
            running.append(box.guest.start(ExecRequest((*PYTHON, NPROC), stdin=True)))
            chunk = next(data for name, data in running[-1].chunks() if name == "stdout")
            counts.append(json.loads(chunk))
        assert counts == [counts[0]] * 4
        assert limit - 4 <= counts[0] < limit
    finally:
        for command in running:
            command.close()


def test_no_zombie_is_left_inside(box: Box) -> None:
    box.run("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0 &) ; done; setsid sh -c 'sleep 0 &'")
    deadline = time.monotonic() + 120
    count = "cat /proc/[0-9]*/stat | cut -d' ' -f3 | grep -c Z"
    while box.run("sh", "-c", count)[1] != "0\n":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_threads_signals_and_aborts_hit_the_right_thread(box: Box) -> None:
    """raise(3) uses the thread id that the C library has cached; a forked child inherits it."""
    script = (
        "import os, signal, threading\n"
        "hits = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: hits.append(threading.get_native_id()))\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    signal.raise_signal(signal.SIGUSR1)\n"
        "    os._exit(len(hits))\n"
        "print(len(hits), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert box.run(*PYTHON, script)[1] == "1 2\n"
    assert box.run(*PYTHON, "import os; os.abort()")[0].signal == signal.SIGABRT


def test_many_sandboxes_born_at_once_are_whole(make: Make) -> None:
    def work(n: int) -> tuple[str, CauseCode]:
        end, out, _ = make().run("sh", "-c", f"echo {n} > own; cat own")
        return out, end.cause.code

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(12))) == [(f"{n}\n", CauseCode.EXITED) for n in range(12)]
