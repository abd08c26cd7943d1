"""A daemon is killed around a started command's end: the next one has all of its output, or says
what is missing."""

import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentd.model.errors import AgentdError
from agentd.sandbox.supervisor import client

WAIT = 120.0
TIMES = 5
LINES = "".join(f"line {n}\n" for n in range(200))
# A daemon that makes a sandbox and starts a command, or that looks at what there is.
DAEMON = """
import json, os, sys, time
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.model.api import ExecBody, SandboxBody
from agentd.model.principal import Principal

def tell(**fields):
    os.write(1, json.dumps(fields).encode() + b"\\n")

settings = [(("daemon", "state"), sys.argv[1]), (("sandbox", "minimum"), "none")]
daemon = Daemon(load(None, {}, settings), lambda event, **fields: None)
service = daemon.of(Principal("me", frozenset({"admin"}), "local"))

def events(sandbox, process):
    output = service.commands.follow(sandbox, process, {}, lambda: None)
    while True:
        for event in output.read(1 << 20):
            if event.kind == "exit":
                output.close()
                return
            yield event
        time.sleep(0.001)

if sys.argv[2] == "begin":
    sandbox = service.sandboxes.create(SandboxBody(backend=sys.argv[3], ttl=600)).id
    process = service.commands.start(sandbox, ExecBody(cmd=sys.argv[4])).id
    for event in events(sandbox, process):
        tell(sandbox=sandbox, process=process)
        break
    time.sleep(60)
sandbox, process = sys.argv[3:5]
said = []
for event in events(sandbox, process):
    lost = event.kind == "lost"
    said.append([event.offset, event.length if lost else bytes(event.data).decode()])
view = service.commands.get(sandbox, process)
tell(said=said, state=view.state, output=view.output, code=view.result and view.result.exit_code)
service.sandboxes.kill(sandbox)
daemon.link.ask("shutdown")
daemon.close()
"""


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        yield Path(folder)
        path = Path(folder) / "supervisor.sock"
        if path.exists():
            try:
                link = client.connect(str(path), lambda *_: None)
                link.ask("shutdown")
                link.close()
            except AgentdError:
                pass
            wait_for(lambda: not path.exists())


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def daemon(state: Path, *words: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", DAEMON, str(state), *words]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def line(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def killed(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def look(state: Path, ids: dict[str, Any]) -> dict[str, Any]:
    """What the next daemon has of it."""
    with daemon(state, "look", ids["sandbox"], ids["process"]) as next_one:
        found = line(next_one)
        assert next_one.wait(WAIT) == 0
    wait_for(lambda: not (state / "supervisor.sock").exists())
    return found


def is_ended(state: Path, process: str) -> bool:
    with sqlite3.connect(f"file:{state}/store.db?mode=ro", uri=True) as store:
        query = "SELECT state FROM processes WHERE id = ?"
        found = store.execute(query, (process,)).fetchone()
    store.close()
    return found == ("ended",)


def test_what_is_recorded_as_ended_has_all_of_its_output_on_disk(state: Path) -> None:
    script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done"
    for _ in range(TIMES):
        first = daemon(state, "begin", "host", script)
        ids = line(first)
        wait_for(lambda ids=ids: is_ended(state, ids["process"]))
        killed(first)
        found = look(state, ids)
        assert (found["state"], found["code"]) == ("ended", 0)
        assert "".join(str(said) for _, said in found["said"]) == LINES


def test_what_the_agent_dropped_while_no_daemon_was_there_is_told(state: Path) -> None:
    go, done = state / "go", state / "done"
    script = (
        f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; seq 1 400000; echo last;"
        f" touch {done}; while [ ! -e {done}.seen ]; do sleep 0.02; done"
    )
    whole = "first\n" + "".join(f"{n}\n" for n in range(1, 400_001)) + "last\n"
    first = daemon(state, "begin", "host", script)
    ids = line(first)
    # What came is on disk; what comes while nobody follows is more than the agent keeps.
    wait_for(lambda: list((state / "journals").glob(f"{ids['sandbox']}/{ids['process']}.*")))
    killed(first)
    go.touch()
    wait_for(done.exists)
    (state / "done.seen").touch()
    found = look(state, ids)
    assert found["output"] == {"stdout": len(whole)}
    gaps = [said for said in found["said"] if isinstance(said[1], int)]
    assert gaps
    at = 0
    for offset, said in found["said"]:
        assert offset == at
        if isinstance(said, str):
            assert whole[at : at + len(said)] == said
        at += said if isinstance(said, int) else len(said)
    assert at == len(whole)
