"""A daemon under load is killed again and again: nothing acknowledged is lost, nothing is left."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from tests import combinations

from agentd.model.errors import AgentdError
from agentd.sandbox.supervisor import client

KILLS = 100 if combinations.ALL else 12
WAIT = 120.0

# A daemon, and four principals that keep it busy. Each acknowledged step is told on stdout: one
# line, written at once, so that whoever kills us knows what must still be there.
DAEMON = """
import json, os, random, sys, threading, time
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.model.api import ExecBody, SandboxBody
from agentd.model.errors import AgentdError
from agentd.model.principal import Principal

def tell(**fields):
    os.write(1, json.dumps(fields).encode() + b"\\n")

config = load(None, {}, [(("daemon", "state"), sys.argv[1])])
daemon = Daemon(config, lambda event, **fields: None)
service = daemon.of(Principal("admin", frozenset({"admin"}), "local"))
tell(up=[v.id for v in service.sandboxes.list()])
if sys.argv[2] == "look":
    for view in service.sandboxes.list():
        runs = [p.state for p in service.commands.list(view.id)]
        result = service.commands.exec(view.id, ExecBody(cmd="cat kept 2>/dev/null; echo; id -un"))
        tell(id=view.id, runs=runs, out=result.stdout, code=result.exit_code)
        service.sandboxes.kill(view.id)
    tell(left=[v.id for v in service.sandboxes.list()])
    daemon.link.ask("shutdown")
    daemon.close()
    sys.exit(0)

def work(number):
    scopes = frozenset({"create", "run", "read", "files"})
    service = daemon.of(Principal(f"user-{number}", scopes, "local"))
    mine = []
    while True:
        try:
            kind = random.random()
            if len(mine) < 3 and (kind < 0.4 or not mine):
                view = service.sandboxes.create(SandboxBody(ttl=600))
                mine.append(view.id)
                tell(created=view.id)
            elif kind < 0.7:
                id_ = random.choice(mine)
                result = service.commands.exec(id_, ExecBody(cmd="echo yes > kept"))
                if result.exit_code == 0:
                    tell(kept=id_)
            elif kind < 0.85:
                id_ = random.choice(mine)
                body = ExecBody(cmd="while :; do date; sleep 0.2; done")
                started = service.commands.start(id_, body)
                tell(started=started.id, of=id_)
            else:
                id_ = mine.pop()
                service.sandboxes.kill(id_)
                tell(deleted=id_)
        except AgentdError as error:
            mine = [v.id for v in service.sandboxes.list()]

for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
time.sleep(60)
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
            until_gone(path)


def until_gone(path: Path) -> None:
    deadline = time.monotonic() + WAIT
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.05)


def start(state: Path, mode: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-c", DAEMON, str(state), mode]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


def lines(daemon: "subprocess.Popen[bytes]") -> Iterator[dict[str, object]]:
    assert daemon.stdout is not None
    for line in daemon.stdout:
        if line.endswith(b"\n"):
            yield json.loads(line)


class Ledger:
    """What was acknowledged. A deletion may have been done without having been told."""

    def __init__(self) -> None:
        self.alive: set[str] = set()
        self.kept: set[str] = set()
        self.deleted: set[str] = set()

    def note(self, line: dict[str, object]) -> None:
        created, kept, deleted = (line.get(k) for k in ("created", "kept", "deleted"))
        if isinstance(created, str):
            self.alive.add(created)
        if isinstance(kept, str):
            self.kept.add(kept)
        if isinstance(deleted, str):
            self.deleted.add(deleted)
            self.alive.discard(deleted)


def test_killed_at_random_points_it_loses_and_leaves_nothing(state: Path) -> None:
    order = random.Random(7)  # noqa: S311  (it shall be the same each time)
    ledger = Ledger()
    adopted = 0
    for _ in range(KILLS):
        daemon = start(state, "work")
        told = lines(daemon)
        up = next(told)["up"]
        assert isinstance(up, list)
        # Nothing that was deleted comes back. What was acknowledged is there, unless its deletion
        # was under way when we struck.
        assert not ledger.deleted & set(up)
        missing = ledger.alive - set(up)
        assert len(missing) <= 4, "more are gone than there are principals that could delete one"
        ledger.alive -= missing
        adopted += len(up)
        # After some of what it does, however long that takes here.
        for line in islice(told, order.randrange(12)):
            ledger.note(line)
        time.sleep(order.uniform(0.0, 0.02))
        daemon.send_signal(signal.SIGKILL)
        for line in told:
            ledger.note(line)
        daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()
    assert adopted > KILLS / 2, "the daemons had nothing to take over"
    assert ledger.kept, "no command was acknowledged"
    look(state, ledger)
    assert not list((state).glob("supervisor.sock"))
    assert processes_of(state) == []


def look(state: Path, ledger: Ledger) -> None:
    daemon = start(state, "look")
    seen: dict[str, dict[str, object]] = {}
    left: object = None
    for line in lines(daemon):
        if "id" in line:
            seen[str(line["id"])] = line
        left = line.get("left", left)
    assert daemon.wait(WAIT) == 0
    if daemon.stdout is not None:
        daemon.stdout.close()
    assert left == []
    assert not ledger.deleted & set(seen)
    assert len(ledger.alive - set(seen)) <= 4
    for id_, line in seen.items():
        assert line["code"] == 0
        assert str(line["out"]).split()[-1] == "sandbox"
        if id_ in ledger.kept:
            assert str(line["out"]).startswith("yes\n")
    until_gone(state / "supervisor.sock")


def processes_of(state: Path) -> list[str]:
    """Command lines that name the state directory: the supervisor's, a daemon's."""
    deadline = time.monotonic() + WAIT
    while True:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if os.fsencode(str(state)) in words and path.parent.name != str(os.getpid()):
                found.append(words.replace(b"\0", b" ").decode(errors="replace"))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


COUNTER = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.01; done"
ONE = """
import json, os, sys, time
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.model.api import ExecBody, SandboxBody
from agentd.model.principal import Principal

daemon = Daemon(load(None, {}, [(("daemon", "state"), sys.argv[1])]), lambda event, **fields: None)
service = daemon.of(Principal("admin", frozenset({"admin"}), "local"))

def output(id_, process):
    follower = service.commands.follow(id_, process, {}, lambda: None)
    found, over, deadline = [], None, time.monotonic() + 120
    while over is None and time.monotonic() < deadline:
        for event in follower.read(1 << 20):
            if event.kind == "exit":
                over = event.result
            else:
                found.append((event.kind, event.offset, event.data.decode()))
        time.sleep(0.01)
    follower.close()
    return found, over
"""
BEGIN = """
view = service.sandboxes.create(SandboxBody(ttl=600))
process = service.commands.start(view.id, ExecBody(cmd=sys.argv[2]))
print(json.dumps([view.id, process.id]), flush=True)
time.sleep(60)
"""
GO_ON = """
id_, process = sys.argv[2:4]
found, over = output(id_, process)
text = "".join(data for _, _, data in found)
kinds = sorted({kind for kind, _, _ in found})
print(json.dumps({"text": text, "kinds": kinds, "code": over and over.exit_code}))
service.sandboxes.kill(id_)
daemon.link.ask("shutdown")
daemon.close()
"""


SLOW = """
import sys, time
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.daemon.sandboxes.sandboxes import Sandboxes
from agentd.model.api import ExecBody, SandboxBody
from agentd.model.principal import Principal

adopt = Sandboxes.adopt
Sandboxes.adopt = lambda self, tell: time.sleep(1.5) or adopt(self, tell)
daemon = Daemon(
    load(None, {}, [(("daemon", "state"), sys.argv[1])]), lambda event, **fields: None
)
deadline = time.monotonic() + 120
while not daemon.pool.sizes().get("default/namespace") and time.monotonic() < deadline:
    time.sleep(0.01)
service = daemon.of(Principal("admin", frozenset({"admin"}), "local"))
view = service.sandboxes.create(SandboxBody(ttl=600))
print(service.commands.exec(view.id, ExecBody(cmd="echo alive")).stdout, end="")
service.sandboxes.kill(view.id)
daemon.link.ask("shutdown")
daemon.close()
"""


def test_what_the_pool_made_is_not_taken_for_the_last_daemons(state: Path) -> None:
    argv = [sys.executable, "-c", SLOW, str(state)]
    assert subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout == b"alive\n"


def test_a_commands_output_goes_on_without_a_gap(state: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", ONE + BEGIN, str(state), COUNTER], stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    id_, process = json.loads(first.stdout.readline())
    time.sleep(0.5)
    first.kill()
    first.wait()
    first.stdout.close()
    time.sleep(0.3)
    second = subprocess.run(
        [sys.executable, "-c", ONE + GO_ON, str(state), id_, process],
        capture_output=True,
        timeout=120,
        check=True,
    )
    told = json.loads(second.stdout)
    assert told["code"] == 0
    assert told["text"] == "".join(f"{n}\n" for n in range(1, 401))
    assert told["kinds"] == ["data"]
    until_gone(state / "supervisor.sock")
