"""The zygote outlives what a sandbox does; where it is killed, another takes its place."""

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, running, until

from agentd import Sandbox
from agentd.model.errors import InvalidInput

# Descriptors on their way are counted by user: this keeps as many there as the kernel lets it, in
# four processes, and says so.
IN_FLIGHT = """
import array, os, socket, sys, time
keep = []
def fill():
    null = os.open("/dev/null", os.O_RDONLY)
    sent = 0
    while True:
        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        a.setblocking(False)
        keep.append((a, b))
        try:
            while True:
                rights = array.array("i", [null] * 250)
                a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                sent += 250
        except BlockingIOError:
            continue
        except OSError:
            return sent
for _ in range(3):
    if os.fork() == 0:
        break
print("in flight", fill(), flush=True)
open("/tmp/full", "w").close()
while True:
    fill()
    time.sleep(0.02)
"""


def limited(soft: int, hard: int | str = "") -> tuple[str, ...]:
    """What starts a daemon with these limits of open files."""
    return "prlimit", f"--nofile={soft}:{hard}"


def attack(daemon: Daemon, sandbox: str) -> None:
    """Returns once it holds them."""
    body = {"cmd": ["/usr/bin/python3", "-c", IN_FLIGHT], "wait": False}
    started = daemon.ask("POST", f"/v1/sandboxes/{sandbox}/exec", body)
    assert started.status == 201, started.body
    until(lambda: run(daemon, sandbox, "cat /tmp/full")["exit_code"] == 0)


def run(daemon: Daemon, sandbox: str, cmd: str = "echo here") -> Any:
    answer = daemon.ask("POST", f"/v1/sandboxes/{sandbox}/exec", {"cmd": cmd})
    assert answer.status == 200, answer.body
    return answer.json


def test_descriptors_in_flight_end_no_other_sandbox_and_keep_none_out() -> None:
    with running(prefix=limited(1024)) as daemon:
        others = [daemon.sandbox() for _ in range(3)]
        attack(daemon, daemon.sandbox())
        for _ in range(4):
            others.append(daemon.sandbox())
            for id_ in others:
                assert run(daemon, id_)["stdout"] == "here\n"


def test_where_the_limit_cannot_be_raised_over_a_sandboxs_the_others_go_on() -> None:
    with running(prefix=limited(1024, 4096)) as daemon:
        others = [daemon.sandbox() for _ in range(3)]
        attacker = daemon.sandbox()
        attack(daemon, attacker)
        for _ in range(8):
            made = daemon.ask("POST", "/v1/sandboxes", {})
            # A sandbox of a user of its own is kept from nothing; one of the same may be refused.
            assert made.status == 201 or "descriptors on their way" in made.json["cause"], made.body
            for id_ in others:
                assert run(daemon, id_)["stdout"] == "here\n"
        assert daemon.ask("DELETE", f"/v1/sandboxes/{attacker}").status == 204
        until(lambda: daemon.ask("POST", "/v1/sandboxes", {}).status == 201)


def test_an_ordinary_users_commands_run_beside_such_a_sandbox(as_user_alone: Any) -> None:
    script = f"""
import json, resource, shutil, subprocess, sys
from agentd import Sandbox
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
def limit(soft):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
def said(run):
    try:
        return run()
    except Exception as error:
        return f"{{type(error).__name__}} {{error.cause}}"
def fresh(**wall):
    with Sandbox.create(**wall) as box:
        return box.run("echo fresh").text
def contained():
    found = [name for name in ("crun", "runc") if shutil.which(name)]
    return [said(lambda: fresh(backend="oci", runtime=name)) for name in found]
def command():
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "--", "echo", "there"]
    done = subprocess.run(argv, capture_output=True, text=True)
    return done.stdout + done.stderr
limit(1024)
with Sandbox.create() as box, Sandbox.create() as other:
    p = box.start(["/usr/bin/python3", "-c", {IN_FLIGHT!r}])
    for piece in p:
        break
    low = [said(fresh) for _ in range(3)] + contained()
    commands = [command() for _ in range(3)]
    limit(hard)
    high = [said(fresh) for _ in range(3)] + contained()
    high.append(other.run("echo still").text)
    p.kill()
print(json.dumps([low, commands, high]))
"""
    done = as_user_alone.python("-c", script)
    assert done.returncode == 0, done.stderr.decode()
    low, commands, high = json.loads(done.stdout)
    # A program with a limit of its own is told what it is that it has no room for.
    for answer in low:
        assert answer == "fresh\n" or "descriptors on their way" in answer, answer
    assert commands == ["there\n"] * 3
    *fresh, still = high
    assert (fresh, still) == (["fresh\n"] * len(fresh), "still\n")


def test_a_workspace_whose_changes_could_not_be_had_is_refused(as_user_alone: Any) -> None:
    """Its disk, of which they are listed and applied, did not reach the host."""
    script = f"""
import os, resource
from agentd import AgentdError, Sandbox
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
os.mkdir("w")
with Sandbox.create(backend="linux") as box:
    p = box.start(["/usr/bin/python3", "-c", {IN_FLIGHT!r}])
    for piece in p:
        break
    try:
        with Sandbox.create(backend="linux", workspace="w:cow") as other:
            other.run("echo new > a", check=True)
            print(other.changes())
    except AgentdError as error:
        print(error.cause)
    p.kill()
"""
    done = as_user_alone.python("-c", script)
    assert done.returncode == 0, done.stderr.decode()
    told = done.stdout.decode()
    assert told == "('A a',)\n" or "descriptors on their way" in told, told


def zygotes(daemon: Daemon) -> dict[str, int]:
    """PID 1 of each zygote's namespace, by whether it has sandboxes with a network."""
    supervisor = int((daemon.state / "supervisor.sock.lock").read_text())
    return {str(pid): child for pid in children(supervisor) for child in children(pid)}


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def test_a_killed_zygote_is_replaced_and_only_its_sandboxes_end() -> None:
    with running('[sandbox]\nminimum = "process"\nnetworks = ["none", "host"]\n') as daemon:
        ours = [daemon.sandbox(isolation="namespace") for _ in range(2)]
        before = zygotes(daemon)
        assert len(before) == 1
        hosts = daemon.sandbox(isolation="namespace", net="host")
        walled = daemon.sandbox(backend="landlock", isolation="process")
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        for id_ in ours:
            until(lambda id_=id_: daemon.ask("GET", f"/v1/sandboxes/{id_}").status == 404)
        for id_ in (hosts, walled, daemon.sandbox(isolation="namespace")):
            assert run(daemon, id_)["stdout"] == "here\n"
        assert daemon.ask("GET", "/readyz").status == 200
        assert daemon.log.count(b"backend_lost") == len(ours)


def limit_files(pid: int, soft: str) -> str:
    """As its own user, who alone may do that without CAP_SYS_RESOURCE; what it was."""
    status = Path(f"/proc/{pid}/status").read_text()
    uid, gid = (status.split(f"{name}:")[1].split()[0] for name in ("Uid", "Gid"))
    own = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "prlimit"]
    asked = [*own, f"--pid={pid}", "--nofile", "--output=SOFT", "--noheadings"]
    was = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run([*own, f"--pid={pid}", f"--nofile={soft}:"], check=True)
    return was


@pytest.mark.root
def test_a_zygote_that_cannot_take_what_is_passed_on_says_so_and_goes_on() -> None:
    """The descriptor that comes with a request is lost: that request fails, and nothing else."""
    with running() as daemon:
        other = daemon.sandbox()
        (zygote,) = zygotes(daemon).values()
        soft = limit_files(zygote, "3")
        try:
            made = [daemon.ask("POST", "/v1/sandboxes", {}) for _ in range(4)]
        finally:
            limit_files(zygote, soft)
        refused = [answer.json for answer in made if answer.status != 201]
        assert len(refused) >= 2  # one or two were made ahead
        assert all("no descriptor is left" in json["cause"] for json in refused), refused
        for id_ in (other, daemon.sandbox()):
            assert run(daemon, id_)["stdout"] == "here\n"
        assert list(zygotes(daemon).values()) == [zygote]


@pytest.mark.parametrize("wall", ["linux", "landlock", "host"])
def test_an_environment_that_is_too_long_is_refused_and_ends_nothing(wall: str) -> None:
    create = partial(Sandbox.create, backend=wall, isolation="none")
    with create() as other:
        for size in (100_000, 150_000, 300_000):
            long = {"LONG": "x" * size}
            if size < 128 << 10:
                with create(env=long) as box:
                    assert box.run("echo ${#LONG}").text == f"{size}\n"
                continue
            with pytest.raises(InvalidInput, match="less environment"):
                create(env=long)
        assert other.run("echo here").text == "here\n"


def test_one_that_is_too_long_for_the_supervisor_is_refused_by_a_daemon() -> None:
    """A longer message would be cut, or not fit: the daemon would lose its supervisor."""
    with running() as daemon:
        other = daemon.sandbox()
        for size in (100_000, 300_000):
            parts = {f"PART{number}": "x" * 10_000 for number in range(size // 10_000)}
            answer = daemon.ask("POST", "/v1/sandboxes", {"env": parts})
            assert answer.status == 400, answer.body
            assert "over 98304" in answer.json["message"]
            assert "less environment" in answer.json["remediation"]
        assert run(daemon, other)["stdout"] == "here\n"


def test_an_ordinary_users_daemon_goes_on_beside_such_a_sandbox(as_user_alone: Any) -> None:
    script = f"""
import json, os, resource, subprocess, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
home = os.environ["HOME"]
os.environ["AGENTD_URL"] = f"unix:{{home}}/a.sock"
agentd = [sys.executable, "-m", "agentd"]
def cli(*words):
    done = subprocess.run([*agentd, *words], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()
serve = [*agentd, "serve", "--state", f"{{home}}/s", "--listen", f"unix:{{home}}/a.sock"]
daemon = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
try:
    daemon.stdout.readline()
    attacker, other = cli("create"), cli("create")
    attack = [*agentd, "exec", attacker, "--", "/usr/bin/python3", "-c", {IN_FLIGHT!r}]
    running = subprocess.Popen(attack, stdout=subprocess.PIPE)
    running.stdout.readline()
    said = []
    for _ in range(3):
        said.append(cli("exec", other, "--", "echo", "here"))
        said.append(cli("exec", cli("create"), "--", "echo", "fresh"))
    running.kill()
    running.wait()
    cli("kill", *cli("ls", "-q").split())
finally:
    daemon.terminate()
    daemon.wait()
    from agentd.sandbox.supervisor import client
    link = client.connect(f"{{home}}/s/supervisor.sock", lambda *_: None)
    link.ask("shutdown")
    link.lost.wait(120)
    link.close()
print(json.dumps(said))
"""
    done = as_user_alone.python("-c", script)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == ["here", "fresh"] * 3
