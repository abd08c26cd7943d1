"""The daemon put together, killed, and started again: what was signed holds once over all of that,
and what waited for approval is told as expired."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import running

from agentd.auth.keyfiles import load_private, new_pair
from agentd.auth.signing import sign

# One life of a daemon: lines of JSON in, what came of each out.
LIFE = """
import json, sys, threading
from agentd.daemon.app import Daemon
from agentd.daemon.config import load
from agentd.model.errors import AgentdError
from agentd.model.principal import Principal

options = [(("daemon", "state"), sys.argv[1]), (("auth", "signed", "signers"), sys.argv[2])]
daemon = Daemon(load(None, {}, options), lambda event, **fields: None)
relay = Principal("relay", frozenset({"run", "read"}), "key")
boss = Principal("boss", frozenset({"approve", "read"}), "key")

def do(op, value):
    if op == "signed":
        return daemon.signed.acting(relay, value).name
    if op == "ask":
        return daemon.approvals.ask(value, relay, "req-1").id
    if op == "approve":
        return daemon.of(boss).approvals.decide(value, allow=True).state
    if op == "wait":
        return daemon.approvals.wait(value).state
    if op == "parked":  # by who asked, until the daemon ends
        done = []
        waiter = threading.Thread(target=lambda: done.append(daemon.approvals.wait(value).state))
        waiter.start()
        daemon.end_waiting()
        waiter.join()
        return done[0]
    return [[a.state, a.note] for a in daemon.of(boss).approvals.list()]

print("up", flush=True)
for line in sys.stdin:
    try:
        answer = do(*json.loads(line))
    except AgentdError as error:
        answer = error.code
    print(json.dumps(answer), flush=True)
daemon.link.ask("shutdown")
daemon.close()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    # The supervisor's socket lies in it, and has a short name.
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        (Path(folder) / "signers").mkdir(mode=0o755)
        yield Path(folder)


class Life:
    def __init__(self, place: Path) -> None:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", LIFE, f"{place}/state", f"{place}/signers"]
        self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe)
        assert self._line() == b"up\n"

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def ask(self, op: str, value: object = None) -> object:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([op, value]).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def end(self, *, kill: bool = False) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        if kill:
            self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(120) == (-9 if kill else 0)


def test_over_the_lives_of_a_daemon(place: Path) -> None:
    _, public = new_pair(f"{place}/alice.pem")
    key = load_private(f"{place}/alice.pem")
    first = Life(place)
    one, two, three = (sign({"n": n}, key) for n in range(3))
    assert first.ask("signed", one) == "signer_unknown"
    Path(public).rename(place / "signers/alice.pem")
    first.end()

    second = Life(place)
    assert second.ask("signed", {"n": 1}) == "relay"
    assert second.ask("signed", one) == "alice"
    assert second.ask("signed", one) == "nonce_replayed"
    assert second.ask("signed", {**two, "n": 7}) == "signature_invalid"
    asked = second.ask("ask", {"n": 1})
    assert second.ask("approve", asked) == "approved"
    assert second.ask("wait", asked) == "approved"
    waiting = second.ask("ask", {"n": 2})
    second.end(kill=True)

    third = Life(place)
    assert third.ask("signed", one) == "nonce_replayed"
    assert third.ask("signed", two) == "alice"
    assert third.ask("approve", waiting) == "conflict"
    assert ["expired", "the daemon ended while it waited"] in third.ask("approvals")  # type: ignore[operator]
    parked = third.ask("ask", {"n": 3})
    assert third.ask("parked", parked) == "expired"
    (place / "signers/alice.pem").unlink()
    assert third.ask("signed", three) == "signer_unknown"
    third.end()


@pytest.mark.parametrize(
    ("name", "fix"), [("", "sign it without an audience"), ("here", "agentd sign --audience NAME")]
)
def test_a_request_for_another_daemon_is_told_what_this_one_takes(
    place: Path, name: str, fix: str
) -> None:
    new_pair(str(place / "alice.pem"))
    (place / "alice.pub.pem").rename(place / "signers/alice.pem")
    key = load_private(str(place / "alice.pem"))
    audience = f"audience = '{name}'\n" if name else ""
    with running(f"[auth.signed]\nsigners = '{place}/signers'\n{audience}") as daemon:
        request = sign({"capability": "fs.list.v1", "parameters": {}}, key, audience="there")
        answer = daemon.ask("POST", "/v1/call", request)
        assert (answer.status, answer.code) == (401, "wrong_audience")
        assert fix in answer.json["remediation"]
