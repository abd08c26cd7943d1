"""Threat: what must be approved is done without, or is approved by whoever asks for it.

Control: the request waits until another principal with the scope approve has decided; what is not
decided in time, or whose caller or daemon is gone, is refused; every step is written down.
"""

import contextlib
import json
import signal
import threading
from collections.abc import Iterator

import pytest
from tests.security.daemons import Answer, Daemon, Later, fixture, running, until

POLICY = """
decision := {"allow": true, "obligations": {"approve": wanted}}

default wanted := false

wanted if {
	input.principal.name in {"alice", "both"}
	input.capability.name in {"shell.exec.v1", "fs.write.v1"}
}
"""
SLEEPY = '[approvals]\nttl = "1s"\n'

daemon = fixture(policy=POLICY)


@pytest.fixture(scope="module")
def alice(daemon: Daemon) -> str:
    return daemon.key("alice")


@pytest.fixture(scope="module")
def bob(daemon: Daemon) -> str:
    return daemon.key("bob", "approve", "read")


@pytest.fixture
def box(daemon: Daemon, alice: str) -> str:
    return daemon.sandbox(alice)


def pending(daemon: Daemon, key: str) -> list[dict[str, object]]:
    found = daemon.ask("GET", "/v1/approvals", key=key).json
    return [view for view in found if view["state"] == "pending"]


def asked(daemon: Daemon, key: str) -> dict[str, object]:
    """The one that waits, once it does."""
    until(lambda: bool(pending(daemon, key)))
    (found,) = pending(daemon, key)
    return found


def decide(daemon: Daemon, key: str, id_: object, *, allow: bool, note: str = "") -> Answer:
    body = {"allow": allow, "note": note}
    return daemon.ask("POST", f"/v1/approvals/{id_}/decide", body, key=key)


def run(daemon: Daemon, key: str, box: str, how: str) -> Answer:
    if how == "exec":
        path = f"/v1/sandboxes/{box}/exec"
        return daemon.ask("POST", path, {"cmd": "echo done > made; cat made"}, key=key)
    if how == "a file":
        path = f"/v1/sandboxes/{box}/files?path=/workspace/made"
        return daemon.ask("PUT", path, b"done", key=key)
    script = ["-c", "echo done > made; cat made"]
    return daemon.call("shell.exec.v1", {"command": "sh", "args": script}, sandbox=box, key=key)


def made(daemon: Daemon, box: str) -> bool:
    path = f"/v1/sandboxes/{box}/files/stat?path=/workspace/made"
    return daemon.ask("GET", path).status == 200


WAYS = ("exec", "a file", "a call")


@pytest.mark.parametrize("how", WAYS)
def test_it_waits_and_is_done_once_somebody_else_allows_it(
    daemon: Daemon, alice: str, bob: str, box: str, how: str
) -> None:
    later = Later(lambda: run(daemon, alice, box, how))
    view = asked(daemon, bob)
    assert not made(daemon, box) and not later.is_over
    assert (view["principal"], view["asked"]["sandbox"]) == ("alice", box)  # type: ignore[index]
    assert decide(daemon, bob, view["id"], allow=True).status == 200
    assert later.answer().status == 200 and made(daemon, box)
    request = str(view["request"])
    decided = daemon.until_recorded(kind="approval_decided", request=request)
    assert (decided.fields["by"], decided.fields["allowed"]) == ("bob", True)
    assert daemon.call("fs.list.v1", {"path": "/"}).status == 200  # all before it is on disk
    kinds = [r.kind for r in daemon.records(request=request)]
    assert kinds == ["admission", "approval_asked", "approval_decided", "start", "end"]


@pytest.mark.parametrize("how", WAYS)
def test_what_is_denied_is_not_done(
    daemon: Daemon, alice: str, bob: str, box: str, how: str
) -> None:
    later = Later(lambda: run(daemon, alice, box, how))
    view = asked(daemon, bob)
    decide(daemon, bob, view["id"], allow=False, note="not today")
    answer = later.answer()
    assert (answer.status, answer.code) == (403, "approval_denied")
    assert answer.json["cause"] == "bob: not today"
    assert not made(daemon, box)
    daemon.until_recorded(kind="denial", request=str(view["request"]))
    kinds = [r.kind for r in daemon.records(request=str(view["request"]))]
    assert kinds == ["admission", "approval_asked", "approval_decided", "denial"]


def test_nobody_allows_their_own(daemon: Daemon, bob: str, box: str) -> None:
    """Not by another key of theirs either, nor by an admin's of the same name."""
    both = daemon.key("both", "run", "create", "read", "approve", "files")
    own = daemon.sandbox(both)
    later = Later(lambda: run(daemon, both, own, "exec"))
    view = asked(daemon, bob)
    for key in (both, daemon.key("both", "approve"), daemon.key("both", "admin")):
        answer = decide(daemon, key, view["id"], allow=True)
        assert (answer.status, answer.code) == (403, "forbidden")
    assert not later.is_over and not made(daemon, own)
    decide(daemon, bob, view["id"], allow=False)
    assert later.answer().code == "approval_denied"


def test_whoever_has_not_the_scope_neither_sees_nor_decides(
    daemon: Daemon, alice: str, bob: str, box: str
) -> None:
    later = Later(lambda: run(daemon, alice, box, "exec"))
    view = asked(daemon, bob)
    carol = daemon.key("carol")
    assert pending(daemon, carol) == []
    assert daemon.ask("GET", f"/v1/approvals/{view['id']}", key=carol).status == 404
    assert decide(daemon, carol, view["id"], allow=True).code in ("forbidden", "not_found")
    decide(daemon, bob, view["id"], allow=False)
    later.answer()


def test_it_is_decided_once(daemon: Daemon, alice: str, bob: str, box: str) -> None:
    later = Later(lambda: run(daemon, alice, box, "exec"))
    view = asked(daemon, bob)
    decide(daemon, bob, view["id"], allow=False)
    assert decide(daemon, bob, view["id"], allow=True).code == "conflict"
    assert later.answer().code == "approval_denied" and not made(daemon, box)
    # And an approval is of one request: the same again must be asked for again.
    again = Later(lambda: run(daemon, alice, box, "exec"))
    other = asked(daemon, bob)
    assert other["id"] != view["id"]
    decide(daemon, bob, other["id"], allow=False)
    again.answer()


def test_what_was_approved_is_not_to_be_sent_again(
    daemon: Daemon, alice: str, bob: str, box: str
) -> None:
    later = Later(lambda: run(daemon, alice, box, "exec"))
    view = asked(daemon, bob)
    decide(daemon, bob, view["id"], allow=True)
    late = decide(daemon, bob, view["id"], allow=False)
    assert (late.code, late.json["remediation"]) == ("conflict", "its request went on with that")
    assert later.answer().status == 200


def test_what_nobody_decides_on_is_refused_in_time() -> None:
    with running(SLEEPY, policy=POLICY) as daemon:
        alice, bob = daemon.key("alice"), daemon.key("bob", "approve", "read")
        box = daemon.sandbox(alice)
        for how in WAYS:
            later = Later(lambda: run(daemon, alice, box, how))  # noqa: B023
            view = asked(daemon, bob)
            answer = later.answer()
            assert (answer.status, answer.code) == (403, "approval_expired")
            assert decide(daemon, bob, view["id"], allow=True).code == "conflict"
            daemon.until_recorded(kind="approval_expired", request=str(view["request"]))
        assert not made(daemon, box)


def test_a_follower_who_leaves_takes_it_back(
    daemon: Daemon, alice: str, bob: str, box: str
) -> None:
    body = {
        "capability": "shell.exec.v1",
        "sandbox": box,
        "parameters": {"command": "touch", "args": ["made"]},
    }
    with contextlib.closing(daemon.connect()) as link:
        headers = {"X-API-Key": alice, "Content-Type": "application/json"}
        link.request("POST", "/v1/call/stream", json.dumps(body), headers)
        view = asked(daemon, bob)
    until(lambda: pending(daemon, bob) == [])
    assert decide(daemon, bob, view["id"], allow=True).code == "conflict"
    denied = daemon.until_recorded(kind="denial", request=str(view["request"]))
    assert denied.fields["approval"] == "cancelled" and not made(daemon, box)


@pytest.fixture
def other() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        yield made


def test_a_daemon_that_is_told_to_end_tells_whoever_waits(other: Daemon) -> None:
    alice, bob = other.key("alice"), other.key("bob", "approve", "read")
    box = other.sandbox(alice)
    later = Later(lambda: run(other, alice, box, "exec"))
    asked(other, bob)
    assert other.process is not None
    other.process.send_signal(signal.SIGTERM)
    answer = later.answer()
    assert answer.code == "full" and "about to end" in answer.json["message"]


def test_one_that_is_killed_forgets_the_request_and_not_that_it_was_asked(other: Daemon) -> None:
    alice, bob = other.key("alice"), other.key("bob", "approve", "read")
    box = other.sandbox(alice)
    sent = threading.Thread(target=lambda: _suppressed(other, alice, box))
    sent.start()
    view = asked(other, bob)
    other.stop(kill=True)
    sent.join()
    other.start()
    found = other.ask("GET", f"/v1/approvals/{view['id']}", key=bob).json
    assert (found["state"], found["note"]) == ("expired", "the daemon ended while it waited")
    assert decide(other, bob, view["id"], allow=True).code == "conflict"
    assert not made(other, box)
    request = view["request"]
    (expired,) = other.records(kind="approval_expired", request=request)
    assert (expired.principal, expired.sandbox, expired.capability) == (
        "alice",
        box,
        "shell.exec.v1",
    )
    assert expired.fields == {"approval": view["id"]}
    other.stop()
    other.start()
    assert len(other.records(kind="approval_expired", request=request)) == 1


def _suppressed(daemon: Daemon, key: str, box: str) -> None:
    with contextlib.suppress(OSError, Exception):
        run(daemon, key, box, "exec")


def test_what_is_decided_as_the_daemon_is_killed_is_written_down_by_the_next(other: Daemon) -> None:
    alice, bob = other.key("alice"), other.key("bob", "approve", "read")
    box = other.sandbox(alice)
    requests = []
    for allow in (True, False, True, False):
        sent = threading.Thread(target=_suppressed, args=(other, alice, box))
        sent.start()
        view = asked(other, bob)
        assert decide(other, bob, view["id"], allow=allow).status == 200
        other.stop(kill=True)
        sent.join()
        other.start()
        requests.append((view["request"], view["id"], allow))
    for _ in range(2):
        for request, id_, allow in requests:
            (decided,) = other.records(kind="approval_decided", request=str(request))
            assert decided.fields == {"approval": id_, "allowed": allow, "by": "bob"}
            assert (decided.principal, decided.sandbox) == ("alice", box)
        other.stop()
        other.start()


def test_what_waited_is_written_down_once_a_daemon_comes_up(other: Daemon) -> None:
    """Also where one cannot before it, for its key say."""
    alice, bob = other.key("alice"), other.key("bob", "approve", "read")
    box = other.sandbox(alice)
    sent = threading.Thread(target=_suppressed, args=(other, alice, box))
    sent.start()
    view = asked(other, bob)
    other.stop(kill=True)
    sent.join()
    key = other.state / "receipt.key"
    content = key.read_bytes()
    key.write_bytes(b"none")
    other.start()
    assert not other.is_up and b"receipt.key" in other.log
    other.stop(kill=True)
    key.write_bytes(content)
    other.start()
    (expired,) = other.records(kind="approval_expired", request=str(view["request"]))
    assert expired.fields == {"approval": view["id"]}


def test_a_note_that_is_too_long_decides_nothing(
    daemon: Daemon, alice: str, bob: str, box: str
) -> None:
    later = Later(lambda: run(daemon, alice, box, "exec"))
    view = asked(daemon, bob)
    refused = decide(daemon, bob, view["id"], allow=True, note="x" * 501)
    assert (refused.status, refused.code) == (400, "invalid_input")
    assert asked(daemon, bob)["id"] == view["id"] and not made(daemon, box)
    assert decide(daemon, bob, view["id"], allow=True, note="x" * 500).status == 200
    assert later.answer().status == 200
