"""Threat: what a caller writes becomes a line of a log that nobody wrote, or moves a terminal.

Controls: a record is one line of JSON, a line of the text log has nothing unprintable in it, and
the command line shows control characters as what they are.
"""

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from tests.security.daemons import WAIT, Daemon, Later, running, until

from agentd import Sandbox
from agentd.audit import read
from agentd.audit.record import Record

FORGED = '{"seq":1,"prev":"0","kind":"admission","principal":"forged"}'
HOSTILE = {
    "a line": f"x\n{FORGED}\n",
    "a line of the text log": "x\n2026-01-01T00:00:00Z [info] ready principal=forged",
    "carriage return": "innocent\rforged",
    "ANSI": "\x1b[2J\x1b[1;31mforged\x1b[0m",
    "a title": "\x1b]0;forged\x07",
    "eight bits": "\x9b2J\x85forged",
    "a quote": '","principal":"forged","x":"',
    "the other way": "\u202edegrof\u2028\u2029",
    "a null": "x\x00forged",
    "DEL and bell": "\x7f\x08\x07forged",
}
CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9\xae]")
# A policy that quotes what it is asked, and wants some of it approved.
POLICY = """
decision := {"allow": false, "reasons": [concat("", ["test.path: ", input.parameters.path])]} if {
	input.parameters.path
	not startswith(input.parameters.path, "/workspace/allowed")
} else := {"allow": true, "obligations": {"approve": true}} if {
	startswith(input.parameters.command, "approve")
} else := {"allow": true}
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        _attack(made)
        yield made


def _attack(daemon: Daemon) -> None:
    """Every field that a caller may write, with each of these in it."""
    alice, bob = daemon.key("alice", "run", "create", "files", "read", "keys"), _approver(daemon)
    box = daemon.sandbox(alice)
    for text in HOSTILE.values():
        _ask_all(daemon, alice, box, text)
        _ask_approval(daemon, alice, bob, box, text)
    assert daemon.ask("GET", "/v1/version").status == 200


def _approver(daemon: Daemon) -> str:
    return daemon.key("bob", "approve", "read")


def _ask_all(daemon: Daemon, key: str, box: str, text: str) -> None:
    there = f"/v1/sandboxes/{box}"
    in_url = quote(text, safe="")
    for method, path, body in (
        ("POST", "/v1/call", {"capability": text, "parameters": {}}),
        ("POST", "/v1/call", {"capability": "fs.list.v1", "parameters": {"path": text}}),
        ("POST", "/v1/call", {"capability": "fs.list.v1", "parameters": {text: text}}),
        ("POST", "/v1/call", {"capability": "fs.list.v1", "sandbox": text}),
        ("POST", "/v1/call", {"capability": "fs.list.v1", "bundle": text}),
        ("POST", "/v1/call", {"capability": "fs.list.v1", "create": {"image": text}}),
        ("POST", "/v1/sandboxes", {"labels": {"x": text}}),
        ("POST", "/v1/sandboxes", {"labels": {text: "x"}}),
        ("POST", "/v1/sandboxes", {"backend": text}),
        ("POST", "/v1/sandboxes", {"image": text}),
        ("POST", "/v1/sandboxes", {"user": text}),
        ("POST", "/v1/sandboxes", {"workspace": text}),
        ("POST", "/v1/keys", {"name": text, "scopes": ["read"]}),
        ("POST", "/v1/keys", {"name": "x", "scopes": [text]}),
        ("DELETE", f"/v1/keys/{in_url}", None),
        ("GET", f"/v1/sandboxes/{in_url}", None),
        ("GET", f"/v1/receipts/{in_url}", None),
        ("GET", f"/v1/approvals/{in_url}", None),
        ("POST", f"{there}/exec", {"cmd": text}),
        ("POST", f"{there}/exec", {"cmd": [text, text], "cwd": text, "tag": text}),
        ("POST", f"{there}/exec", {"cmd": "true", "env": {text: text}}),
        ("POST", f"{there}/exec", {"cmd": "true", "env": {"X": text}}),
        ("GET", f"{there}/processes/{in_url}", None),
        ("GET", f"{there}/files?path={in_url}", None),
        ("PUT", f"{there}/files?path=/workspace/allowed{in_url}", b"x"),
        ("GET", f"{there}/files/list?path=/workspace/allowed{in_url}", None),
        ("GET", f"/{in_url}", None),
    ):
        daemon.ask(method, path, body, key=key)
    encoded = text.encode("utf-8", "replace").decode("latin-1")
    plain = "".join(c for c in encoded if c not in "\r\n\x00")
    for name in ("X-API-Key", "Authorization", "Idempotency-Key", "traceparent", "User-Agent"):
        daemon.ask("POST", "/v1/call", {"capability": "x.v1"}, **{name: plain})


def _ask_approval(daemon: Daemon, key: str, approver: str, box: str, text: str) -> None:
    parameters = {"command": "approve" + text.replace("\0", ""), "args": [text.replace("\0", "")]}
    later = Later(lambda: daemon.call("shell.exec.v1", parameters, sandbox=box, key=key))

    def waiting() -> list[str]:
        found = daemon.ask("GET", "/v1/approvals", key=approver).json
        return [view["id"] for view in found if view["state"] == "pending"]

    until(lambda: bool(waiting()) or later.is_over)
    for id_ in waiting():
        daemon.ask(
            "POST", f"/v1/approvals/{id_}/decide", {"allow": False, "note": text}, key=approver
        )
    later.answer()


def test_the_audit_log_is_whole_and_has_no_record_that_nobody_wrote(daemon: Daemon) -> None:
    assert daemon.call("shell.exec.v1", {"command": "true"}).status == 200
    lines = b"".join(read.lines(daemon.audit)).splitlines()
    records = daemon.records()  # verified; the daemon may write more between the two
    assert len(lines) > 50
    assert [json.loads(line)["seq"] for line in lines] == [r.seq for r in records[: len(lines)]]
    for line in lines:
        assert not CONTROL.search(line), line
    assert {r.principal for r in records} <= {"alice", "bob", "", f"uid:{os.getuid()}"}
    assert not any("forged" in (r.request, r.sandbox, r.kind) for r in records)


def test_a_refusal_is_bounded_whatever_its_policy_repeats(daemon: Daemon) -> None:
    """By path; the first of it is there."""
    for _ in range(20):
        refused = daemon.call("fs.read.v1", {"path": "/" + "x" * 4000})
        assert refused.code == "policy_denied"

    def found() -> list[Record]:
        return [r for r in daemon.records(kind="denial") if "xxx" in str(r.fields)]

    until(lambda: len(found()) >= 20)
    assert len(found()) == 20
    for record in found():
        (reason,) = record.fields["reasons"]
        assert reason == "test.path: /" + "x" * 488


def test_nor_has_the_text_log(daemon: Daemon) -> None:
    begins = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+Z \S")
    lines = daemon.log.splitlines()
    assert len(lines) > 50
    for line in daemon.log.split(b"\n")[:-1]:
        assert begins.match(line), line
        assert not CONTROL.search(line), line
        assert b"principal=forged" not in re.sub(rb'"(?:[^"\\]|\\.)*"', b"", line), line


def test_nor_has_the_one_in_json() -> None:
    with running('format = "json"\n') as daemon:
        alice = daemon.key("alice")
        box = daemon.sandbox(alice)
        for text in HOSTILE.values():
            _ask_all(daemon, alice, box, text)
        lines = daemon.log.split(b"\n")[:-1]
        assert len(lines) > 50
        for line in lines:
            assert set(json.loads(line)) >= {"timestamp", "level", "event"}
            assert not CONTROL.search(line), line


COMMANDS = (
    ("audit", "tail", "-n", "1000"),
    ("approval", "ls"),
    ("ls",),
    ("key", "ls"),
)


@pytest.mark.parametrize("words", COMMANDS)
def test_what_is_shown_moves_no_terminal(daemon: Daemon, words: tuple[str, ...]) -> None:
    shown = _on_a_terminal(daemon, words)
    assert b"forged" in shown or words[0] != "audit"
    for sequence in (b"\x1b[2J", b"\x1b[1;31m", b"\x1b]0;", b"\x07", b"\x08", b"\x9b2J", b"\x7f"):
        assert sequence not in shown.replace(b"\xc2\x9b", b"\x9b"), sequence
    # Its own: what rich draws with, and what ends its lines.
    left = re.sub(rb"\x1b\[[0-9;]*m|\r\n", b"", shown)
    assert not CONTROL.search(left), CONTROL.search(left)
    piped = daemon.cli(*words).stdout
    assert not CONTROL.search(piped), words


def _on_a_terminal(daemon: Daemon, words: tuple[str, ...]) -> bytes:
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    env |= {
        "AGENTD_URL": daemon.url,
        "AGENTD_DAEMON__STATE": str(daemon.state),
        "AGENTD_API_KEY": _approver(daemon) if words[0] == "approval" else "",
        "TERM": "xterm-256color",
        "COLUMNS": "2000",
    }
    argv = [sys.executable, "-m", "agentd", *words]
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        found = b""
        while select.select([ours], [], [], WAIT)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # nobody has its other end any more
                break
            found += piece
        os.close(ours)
        process.wait(WAIT)
    assert process.returncode == 0, found
    return found


def test_nor_does_what_somebody_is_to_approve(daemon: Daemon) -> None:
    """All of it is shown, to be read before it is allowed."""
    found = daemon.ask("GET", "/v1/approvals", key=_approver(daemon)).json
    assert len(found) == len(HOSTILE)
    for view in found:
        shown = _on_a_terminal(daemon, ("approval", "show", view["id"]))
        assert b"forged" in shown or b"degrof" in shown
        left = re.sub(rb"\x1b\[[0-9;]*m|\r\n", b"", shown)
        assert not CONTROL.search(left), left


def test_a_receipt_is_shown_as_safely(daemon: Daemon, tmp_path: Path) -> None:
    view = daemon.call(
        "shell.exec.v1", {"command": "sh", "args": ["-c", "exit 0"], "env": {"X": HOSTILE["ANSI"]}}
    ).json
    done = daemon.cli("receipt", "show", view["receipt"])
    assert done.returncode == 0 and not CONTROL.search(done.stdout)


def _run(*words: str) -> bytes:
    """All that a command says without a daemon."""
    argv = [sys.executable, "-m", "agentd", *words]
    done = subprocess.run(argv, capture_output=True, timeout=WAIT, check=False)
    return done.stdout + done.stderr


def test_nor_does_a_snapshot_that_somebody_gave_one(tmp_path: Path) -> None:
    text = "".join(HOSTILE.values())
    with Sandbox.create(embedded=True) as sandbox:
        path = sandbox.snapshot(tmp_path / "s").path
    whole = json.loads(Path(path, "manifest.json").read_text())
    for forged, words in (
        ({"id": text, "agentd": text, "created": text}, ("snapshot", "inspect", path)),
        ({"id": text, "agentd": text}, ("snapshot", "inspect", path, "--json")),
        ({"format": 2, "agentd": text}, ("run", "--embedded", "--snapshot", path, "--", "true")),
        ({"spec": whole["spec"] | {"image": text}}, ("snapshot", "inspect", path)),
        (
            {"spec": whole["spec"] | {"image": text}},
            ("run", "--embedded", "--snapshot", path, "--", "true"),
        ),
    ):
        Path(path, "manifest.json").write_text(json.dumps(whole | forged))
        shown = _run(*words)
        assert shown and not CONTROL.search(shown), (words, shown)


def test_nor_does_json(tmp_path: Path) -> None:
    """It leaves DEL, the control characters of eight bits and marks of direction as they are."""
    text = "".join(HOSTILE.values()) + "\U000e0001"
    (tmp_path / "x").write_text(text)
    mounted = ("run", "--embedded", "--json", "--mount", f"{tmp_path}:/in:ro")
    shown = _run(*mounted, "--", "cat", "/in/x")
    assert json.loads(shown)["stdout"] == text and shown.isascii()
