"""A sandbox of the shared kernel that stands still: over a daemon's end, by its lease, and killed.

What every wall must do when it is paused is in the suite (agentd.testing.walls.test_abilities).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import AgentdError, Client, Conflict, NotFound, Refused, Sandbox
from agentd.model.api import ExecBody

WAIT = 120.0
# By which processes are found on the machine: no others have these.
AWAITED = b"7%09d" % int.from_bytes(os.urandom(3))
LIMIT_SECONDS = 15
PART = f"count.{os.urandom(8).hex()}"
COUNT = f"n=0; while :; do n=$((n+1)); echo $n > {PART}; mv {PART} count; sleep 0.05; done"


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    with (made.folder / "agentd.toml").open("a") as file:
        file.write('[sandbox]\nminimum = "process"\n')
    made.start()
    yield made
    made.stop()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Daemon]:
    """One whose processes may be killed."""
    made = Daemon(tmp_path)
    made.start()
    yield made
    made.stop()


def counting(daemon: Daemon, backend: str) -> Sandbox:
    """One in which a command counts, by a wall of the shared kernel that can be paused."""
    made = Sandbox.create(
        url=daemon.url, backend=backend, isolation="process", ttl="10m", name=f"it-{backend}"
    )
    with Client(daemon.url) as client:
        if "pause" not in client.sandboxes.get(made.id).abilities:
            made.close()
            pytest.skip(f"{backend} cannot be paused here")
    made.run(["sh", "-c", f"setsid sh -c '{COUNT}' >/dev/null 2>&1 &"], check=True)
    made.run("until [ -e count ]; do sleep 0.02; done", check=True)
    return made


def counters(mark: bytes = PART.encode()) -> set[int]:
    """The processes that count, of whatever sandbox, or have another word among theirs."""
    return {
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and mark in _words(entry)
    }


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _wait_for(sandbox: Sandbox) -> None:
    with contextlib.suppress(AgentdError):
        sandbox.run(["sleep", AWAITED.decode()])


@pytest.mark.parametrize("kill", [True, False])
def test_a_pause_outlives_a_daemon_that_is_killed_or_drained(fresh: Daemon, kill: bool) -> None:
    """Not so a command that somebody waits for: it ends when what it runs in goes on."""
    sandbox = counting(fresh, "linux")
    waiting = threading.Thread(target=_wait_for, args=(sandbox,))
    waiting.start()
    until(lambda: counters(AWAITED))
    sandbox.pause()
    fresh.stop(kill=kill)
    waiting.join(WAIT)
    fresh.start()
    with Client(fresh.url) as client:
        assert client.sandboxes.get(sandbox.id).state == "paused"
        with pytest.raises(Conflict, match="paused"):
            client.commands.exec(sandbox.id, ExecBody(cmd="true"))
        assert client.sandboxes.resume(sandbox.id).state == "ready"
        counted = client.commands.exec(sandbox.id, ExecBody(cmd="cat count")).stdout
        until(lambda: client.commands.exec(sandbox.id, ExecBody(cmd="cat count")).stdout != counted)
        until(lambda: not counters(AWAITED))
    sandbox.close()


def test_of_several_one_that_is_not_there_keeps_none_from_it(daemon: Daemon) -> None:
    """What was done is told, too; and is done once to one that is named twice."""
    sandbox = counting(daemon, "linux")
    for words, state in (("pause", "paused"), ("resume", "ready")):
        done = daemon.cli(words, "--json", "none", sandbox.id, sandbox.id)
        assert done.returncode == 125 and b"there is no sandbox 'none'" in done.stderr
        assert done.stderr.count(b"\n") == 1
        assert [(view["id"], view["state"]) for view in json.loads(done.stdout)] == [
            (sandbox.id, state)
        ]
    assert b"agentd inspect lists its commands" in daemon.cli("logs", sandbox.id, "none").stderr
    done = daemon.cli("kill", "--json", "none", sandbox.id, "nobody", sandbox.id)
    assert (done.returncode, json.loads(done.stdout)) == (125, {"ended": [sandbox.id]})
    assert done.stderr.count(b"\n") == 2
    for name in (b"none", b"nobody"):
        assert b"there is no sandbox '%s'" % name in done.stderr


@pytest.mark.parametrize(
    ("backend", "how"), [("linux", "kill"), ("landlock", "kill"), ("linux", "lease")]
)
def test_what_is_paused_ends_with_all_that_it_has(daemon: Daemon, backend: str, how: str) -> None:
    before = counters()
    sandbox = counting(daemon, backend)
    members = counters() - before
    assert members
    sandbox.pause()
    with Client(daemon.url) as client:
        if how == "kill":
            assert daemon.cli("kill", sandbox.id).returncode == 0
        else:
            client.sandboxes.renew(sandbox.id, "1s")
        until(lambda: _is_gone(client, sandbox.id))
    until(lambda: not counters() & members)
    sandbox.close()


def test_what_starts_programs_all_the_time_is_paused_each_time(fresh: Daemon) -> None:
    """Version 1 leaves one that waits for its vfork(2) as it is, unless it is asked again."""
    with counting(fresh, "linux") as sandbox:
        starts = "while :; do /bin/true; done"
        for _ in range(4):
            sandbox.run(["sh", "-c", f"setsid sh -c '{starts}' >/dev/null 2>&1 &"], check=True)
        for _ in range(100):
            sandbox.pause()
            sandbox.resume()


def test_what_is_paused_ends_with_its_supervisor(fresh: Daemon) -> None:
    before = counters()
    sandbox = counting(fresh, "linux")
    members = counters() - before
    sandbox.pause()
    lock = fresh.folder / "state" / "supervisor.sock.lock"
    os.kill(int(lock.read_text()), signal.SIGKILL)
    with Client(fresh.url) as client:
        until(lambda: _is_gone(client, sandbox.id))
    # Whoever makes the next one ends what version 1 still holds.
    Sandbox.create(url=fresh.url).close()
    until(lambda: not counters() & members)
    sandbox.close()


def _is_gone(client: Client, id_: str) -> bool:
    try:
        return client.sandboxes.get(id_).state == "ended"
    except NotFound:
        return True


def test_the_command_line_pauses_and_resumes(daemon: Daemon) -> None:
    with counting(daemon, "landlock") as sandbox:
        name = f"it-{sandbox.info.backend}"
        assert daemon.cli("pause", name).returncode == 0
        for words in (("exec", name, "true"), ("pause", name)):
            refused = daemon.cli(*words)
            assert refused.returncode == 125
            assert b"paused" in refused.stderr and b"resume it first" in refused.stderr
        assert daemon.cli("resume", name).returncode == 0
        assert daemon.cli("exec", name, "true").returncode == 0
        again = daemon.cli("resume", name)
        assert again.returncode == 125 and b"it runs" in again.stderr, again.stderr
        with pytest.raises(Conflict):
            sandbox.resume()
        assert daemon.cli("exec", name, "true").returncode == 0


# A daemon in a process of its own: the leases behind ours end at once, not seconds later.
_RENEWED = """
import sys, time
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.daemon.sandboxes import changes, pauses, sandboxes
from agentd.model.api import ExecBody, SandboxBody
from agentd.model.principal import Principal

changes.GRACE_SECONDS = pauses.GRACE_SECONDS = sandboxes.GRACE_SECONDS = 0.1
config = load(None, {}, [(("daemon", "state"), sys.argv[1])])
daemon = Daemon(config, lambda event, **fields: None)
service = daemon.of(Principal("me", frozenset({"admin"}), "local"))
begun = time.monotonic()
made = service.sandboxes.create(SandboxBody(backend="linux", ttl=5))
if "pause" in made.abilities:
    service.sandboxes.pause(made.id)
    service.sandboxes.renew(made.id, "10m")
    while time.monotonic() < begun + 5.4:
        time.sleep(0.02)
    service.sandboxes.resume(made.id)
    print(service.commands.exec(made.id, ExecBody(cmd="sleep 0.5; echo on")).stdout)
else:
    print("cannot")
service.sandboxes.kill(made.id)
daemon.link.ask("shutdown")
daemon.close()
"""


def test_the_agents_own_lease_ends_nothing_that_was_renewed_meanwhile(tmp_path: Path) -> None:
    """It is the last of three, and cannot be told to an agent that is frozen."""
    argv = [sys.executable, "-c", _RENEWED, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=WAIT)
    if done.stdout.strip() == "cannot":
        pytest.skip("linux cannot be paused here")
    assert done.stdout.strip() == "on", done.stderr


_WITHOUT = """
import json
from agentd import Sandbox, Unsupported
found = []
for backend in ("linux", "landlock"):
    with Sandbox.create(backend=backend, isolation="process") as sandbox:
        held = sandbox.enforcement["memory"].enforced
        try:
            sandbox.pause()
            found.append([held, None])
        except Unsupported as refusal:
            found.append([held, refusal.as_dict()])
        assert sandbox.run("echo on").text == "on\\n"
print(json.dumps(found))
"""


def test_without_a_cgroup_it_is_unsupported_and_the_reason_is_told(as_user: OrdinaryUser) -> None:
    done = as_user.python("-c", _WITHOUT)
    assert done.returncode == 0, done.stderr.decode()
    for backend, (held, refused) in zip(
        ("linux", "landlock"), json.loads(done.stdout), strict=True
    ):
        if held:
            pytest.skip("an ordinary user has a cgroup here")
        assert refused["message"] == f"backend {backend} cannot pause a sandbox"
        assert "not writable" in refused["cause"] or "not delegated" in refused["cause"]
        # no wall on this kernel has a cgroup where one has none
        assert refused["remediation"] == "use a backend that can: firecracker, qemu"


# --- idle ---


def kinds(client: Client, id_: str) -> list[tuple[str, dict[str, object]]]:
    """What was told of it, without what says the same of every sandbox."""
    found = [e for e in client.events.read().events if e.sandbox == id_]
    return [(str(e.kind), e.about) for e in found if e.kind in ("paused", "resumed", "ended")]


def state(client: Client, sandbox: Sandbox) -> str:
    return client.sandboxes.get(sandbox.id).state


def test_what_is_idle_is_paused_and_the_next_request_resumes_it(daemon: Daemon) -> None:
    with (
        Client(daemon.url) as client,
        Sandbox.create(url=daemon.url, backend="linux", idle_timeout="1s") as sandbox,
    ):
        view = client.sandboxes.get(sandbox.id)
        assert (view.idle_timeout, view.on_idle) == (1.0, "pause")
        uses = (
            lambda: sandbox.run("echo on", check=True).text == "on\n",
            lambda: sandbox.files.write("/workspace/a", b"kept") is None or True,
            lambda: sandbox.files.read("/workspace/a") == b"kept",
            lambda: sandbox.call("fs.list.v1").value["entries"],
        )
        for done, use in enumerate(uses, 1):
            until(lambda: state(client, sandbox) == "paused")  # to look at it is no use of it
            assert client.sandboxes.get(sandbox.id).paused_by == "idle"
            client.sandboxes.renew(sandbox.id, "10m")  # nor is that
            assert state(client, sandbox) == "paused"
            assert use()  # a busy machine may pause it again before it is looked at
            assert kinds(client, sandbox.id).count(("resumed", {})) == done
        told = kinds(client, sandbox.id)
        assert told[:2] == [("paused", {"why": "idle"}), ("resumed", {})]


def test_what_runs_or_is_under_way_is_not_idle(daemon: Daemon) -> None:
    with (
        Client(daemon.url) as client,
        Sandbox.create(url=daemon.url, backend="linux", idle_timeout="1s") as sandbox,
    ):
        assert sandbox.run("sleep 2.5; echo on").text == "on\n"
        waits = "sleep 2.5; echo behind; until [ -e go ]; do sleep 0.05; done"
        begun = client.commands.start(sandbox.id, ExecBody(cmd=waits))
        before = kinds(client, sandbox.id)  # a busy machine may have paused it between two requests
        until(lambda: client.commands.output(sandbox.id, begun.id) == b"behind\n")
        assert kinds(client, sandbox.id) == before
        sandbox.files.write("/workspace/go", b"")
        until(lambda: client.commands.get(sandbox.id, begun.id).state == "ended")
        until(lambda: state(client, sandbox) == "paused")
        assert client.commands.output(sandbox.id, begun.id) == b"behind\n"  # the daemon has it


def test_on_idle_end_ends_it(daemon: Daemon) -> None:
    with Client(daemon.url) as client:
        sandbox = Sandbox.create(
            url=daemon.url, backend="linux", idle_timeout="1s", on_idle="end", ttl="10m"
        )
        until(lambda: _is_gone(client, sandbox.id))
        until(lambda: kinds(client, sandbox.id))
        assert kinds(client, sandbox.id) == [("ended", {"reason": "idle"})]
        sandbox.close()


def test_one_that_a_caller_paused_waits_for_a_caller(daemon: Daemon) -> None:
    """Also where it rested already when the caller paused it."""
    with (
        Client(daemon.url) as client,
        Sandbox.create(url=daemon.url, backend="linux", idle_timeout="1s") as sandbox,
    ):
        until(lambda: state(client, sandbox) == "paused")
        assert client.sandboxes.pause(sandbox.id).paused_by == ""
        with pytest.raises(Conflict, match="paused"):
            sandbox.run("true")
        assert client.sandboxes.resume(sandbox.id).state == "ready"
        assert sandbox.run("echo on").text == "on\n"


def test_what_rests_does_so_for_the_next_daemon_too(fresh: Daemon) -> None:
    with Client(fresh.url) as client:
        sandbox = Sandbox.create(url=fresh.url, backend="linux", idle_timeout="1s", ttl="10m")
        until(lambda: state(client, sandbox) == "paused")
        fresh.stop(kill=True)
        fresh.start()
        assert client.sandboxes.get(sandbox.id).paused_by == "idle"
        assert client.commands.exec(sandbox.id, ExecBody(cmd="echo on")).stdout == "on\n"
        until(lambda: state(client, sandbox) == "paused")
        sandbox.kill()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--idle-timeout", "0.5s"), b"less than a second"),
        (("--on-idle", "end"), b"--on-idle is given without --idle-timeout"),
        (("--idle-timeout", "soon"), b"--idle-timeout 'soon' is not a time"),
    ],
)
def test_what_is_wrong_with_it_is_told(daemon: Daemon, words: tuple[str, ...], why: bytes) -> None:
    done = daemon.cli("create", *words)
    assert done.returncode == 2 and why in done.stderr
    made = daemon.cli("create", "--backend", "linux", "--idle-timeout", "10m", "--json")
    view = json.loads(made.stdout)
    assert (view["idle_timeout"], view["on_idle"]) == (600, "pause")
    assert daemon.cli("kill", view["id"]).returncode == 0


def test_the_time_of_a_command_stands_still_with_its_sandbox(daemon: Daemon) -> None:
    """Behind every wall here at once, by a daemon and without one: what was paused for longer than
    the time of its command goes on with what was left of it."""
    waits = "until [ -e go ]; do sleep 0.05; done"
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(sandbox) for sandbox in pausable(daemon)]
        begun = []
        for sandbox in made:
            begun.append(sandbox.start(waits, timeout=LIMIT_SECONDS))
            sandbox.pause()
        time.sleep(LIMIT_SECONDS + 1)
        for sandbox in made:
            sandbox.resume()
            sandbox.run("touch go", check=True)
        ended = [process.wait().cause.code for process in begun]
        assert ended == ["exited"] * len(made), [sandbox.info for sandbox in made]
        short = [sandbox.start("sleep 1000", timeout=2) for sandbox in made]
        for sandbox in made:
            sandbox.pause()
            sandbox.resume()
        assert {process.wait().cause.code for process in short} == {"timeout"}


@pytest.mark.parametrize("where", ["daemon", "embedded"])
def test_nor_is_it_over_for_who_waits(daemon: Daemon, where: str) -> None:
    """The host gives a command up by itself, two seconds after its time."""
    place: dict[str, Any] = {"url": daemon.url} if where == "daemon" else {"embedded": True}
    waits = "touch begun; until [ -e go ]; do sleep 0.05; done"
    with Sandbox.create(**place) as sandbox, ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.run, waits, timeout=LIMIT_SECONDS)
        until(lambda: sandbox.files.exists("/workspace/begun"))
        sandbox.pause()
        time.sleep(LIMIT_SECONDS + 4)
        sandbox.resume()
        sandbox.files.write("/workspace/go", b"")
        assert running.result().cause.code == "exited"


def test_what_a_command_is_sent_meanwhile_it_gets_once_it_goes_on(daemon: Daemon) -> None:
    code = "stty -echo; echo begun; read word; stty size; echo $word; exec sleep 1000"
    with contextlib.ExitStack() as stack:
        for sandbox in pausable(daemon):
            stack.enter_context(sandbox)
            if sandbox.info.backend == "landlock":
                continue  # has no terminals
            process = sandbox.start(code, pty=(24, 80))
            output = iter(process)
            assert str(next(output)).startswith("begun")
            sandbox.pause()
            process.resize(40, 120)
            process.write("word\n")
            sandbox.resume()
            told = ""
            while "word" not in told:
                told += str(next(output))
            assert told.split() == ["40", "120", "word"]
            sandbox.pause()
            process.signal(signal.SIGKILL)
            sandbox.resume()
            assert process.wait().signal == signal.SIGKILL


def pausable(daemon: Daemon) -> Iterator[Sandbox]:
    found: list[str] = []
    places: list[dict[str, Any]] = [{"url": daemon.url}, {"embedded": True}]
    for where in places:
        for backend in ("landlock", "linux", "oci", "gvisor"):
            try:
                sandbox = Sandbox.create(backend=backend, isolation="process", **where)
            except Refused:
                continue
            try:
                sandbox.pause()
            except Refused:
                sandbox.close()
                continue
            sandbox.resume()
            found.append(backend)
            yield sandbox
    if len(found) < 2:
        pytest.skip("nothing can be paused here")
