"""A daemon that calls and commands keep busy is killed again and again: the audit log stays whole,
and holds the end of every one that was acknowledged."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_daemon_killed import lines, processes_of, until_gone
from tests.integration.test_daemon_killed import start as start_script
from tests.integration.test_daemon_killed import state as state  # noqa: PLC0414  (a fixture)

from agentd.audit import read
from agentd.audit.keypair import KeyPair
from agentd.audit.receipt import facts_of, issue, verify
from agentd.audit.receipts import find
from agentd.audit.verify import verify as verify_log
from agentd.model.audit import Record

KILLS = 12
WORKERS = 4

# Told is what was acknowledged: one line, written at once.
DAEMON = """
import json, os, random, sys, threading, time
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.model.api import ExecBody, SandboxBody
from agentd.model.errors import AgentdError
from agentd.model.principal import Principal

def tell(**fields):
    os.write(1, json.dumps(fields).encode() + b"\\n")

options = [(("daemon", "state"), sys.argv[1]), (("audit", "file"), "64K")]
daemon = Daemon(load(None, {}, options), lambda event, **fields: None)
tell(up=True)
if sys.argv[2] == "look":
    daemon.link.ask("shutdown")
    daemon.close()
    sys.exit(0)

def call(service, capability, sandbox, **parameters):
    return service.capabilities.call(capability, parameters, sandbox=sandbox)

def work(number):
    who = Principal(f"user-{number}", frozenset({"create", "run", "read", "files"}), "local")
    service = daemon.of(who)
    box = service.sandboxes.create(SandboxBody(ttl=600)).id
    while True:
        kind = random.random()
        try:
            if kind < 0.3:
                done = call(service, "fs.list.v1", box, path="/")
            elif kind < 0.6:
                done = call(service, "shell.exec.v1", box, command="sh", args=["-c", "echo yes"])
            elif kind < 0.7:
                call(service, "fs.read.v1", box, path="nothing")
            else:
                done = service.commands.exec(box, ExecBody(cmd="echo yes"))
            tell(ended=done.request_id, receipt=done.receipt, who=who.name)
        except AgentdError as error:
            tell(failed=error.code)

for number in range(4):
    threading.Thread(target=work, args=(number,), daemon=True).start()
time.sleep(60)
"""


def test_every_end_that_was_acknowledged_is_in_the_log(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.test_daemon_killed.DAEMON", DAEMON)
    order = random.Random(11)  # noqa: S311  (it shall be the same each time)
    told: list[dict[str, object]] = []
    for _ in range(KILLS):
        daemon = start_script(state, "work")
        seen = lines(daemon)
        assert next(seen) == {"up": True}
        told += _until_ended(seen, order.randrange(6, 20))  # by its work: it may be slow
        time.sleep(order.uniform(0, 0.05))
        daemon.send_signal(signal.SIGKILL)
        told += seen
        daemon.wait()
        if daemon.stdout is not None:
            daemon.stdout.close()
        _check_log(state)
    ended = {str(line["ended"]): line for line in told if "ended" in line}
    assert len(ended) > 5 * KILLS, "hardly anything was acknowledged"
    assert {line.get("failed") for line in told} == {None, "not_found"}
    _check_records(state, ended)
    last = start_script(state, "look")
    assert list(lines(last)) == [{"up": True}] and last.wait(120) == 0
    if last.stdout is not None:
        last.stdout.close()
    assert verify_log(str(state / "audit")).ok
    _check_receipts(state, ended)
    until_gone(state / "supervisor.sock")
    assert processes_of(state) == []


def _until_ended(seen: Iterator[dict[str, object]], count: int) -> Iterator[dict[str, object]]:
    """What is told up to the end of that many calls."""
    for line in seen:
        yield line
        count -= "ended" in line
        if count == 0:
            return


def _check_log(state: Path) -> None:
    """Whole as it lies there, but for a last line that the kill has torn."""
    problems = verify_log(str(state / "audit")).problems
    assert [p.kind for p in problems] in ([], ["truncated"]), problems


def _records(state: Path) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in read.records(str(state / "audit")):
        if record.request and record.capability != "sandbox.create.v1":
            found.setdefault(record.request, []).append(record)
    return found


def _check_records(state: Path, ended: dict[str, dict[str, object]]) -> None:
    by_request = _records(state)
    for request, line in ended.items():
        kinds = [record.kind for record in by_request[request]]
        assert kinds == ["admission", "start", "end"], request
        assert {record.principal for record in by_request[request]} == {line["who"]}
    # Of those that were under way, no more than there were workers each time; and none ends twice.
    counts = Counter(tuple(r.kind for r in records) for records in by_request.values())
    whole = {("admission", "start", "end"), ("sandbox_created",)}
    assert set(counts) - whole <= {("admission",), ("admission", "start")}
    assert counts["admission",] + counts["admission", "start"] <= WORKERS * KILLS


def _check_receipts(state: Path, ended: dict[str, dict[str, object]]) -> None:
    """What a kill took was issued again. Each is what the record says."""
    key = KeyPair.load_or_create(str(state / "receipt.key"))
    ends = {r.request: r for r in read.records(str(state / "audit")) if r.kind == "end"}
    for request, line in ended.items():
        assert line["receipt"] == request
        envelope = find(str(state / "receipts"), request)
        assert envelope is not None, request
        assert verify(envelope, key.public_pem()).predicate.record == ends[request].position
        assert envelope == issue(facts_of(ends[request]), key)
        json.loads(envelope)
