"""``GET /v1/events``: what happens to one's sandboxes, read from an id on, and as it happens."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.security.daemons import Daemon, Later, running, until

import agentd

RULES = """
default decision := {"allow": true, "reasons": ["yes"]}
decision := {"allow": false, "reasons": ["no such word"]} if "forbidden" in input.parameters.args
decision := {"allow": true, "obligations": {"approve": true}} if "ask" in input.parameters.args
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def _read(daemon: Daemon, key: str = "", **query: object) -> Any:
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    answer = daemon.ask("GET", f"/v1/events?{asked}", key=key)
    assert answer.status == 200, answer.body
    return answer.json


def _told(page: Any) -> list[tuple[str, str]]:
    return [(event["kind"], event["about"].get("state", "")) for event in page["events"]]


def test_what_happens_to_a_sandbox_is_told_in_its_order(daemon: Daemon) -> None:
    ann = daemon.key("ann")
    start = _read(daemon, ann)["next"]
    box = daemon.sandbox(key=ann)
    path = f"/v1/sandboxes/{box}"
    ran = daemon.ask("POST", f"{path}/exec", {"cmd": "exit 3", "tag": "job"}, key=ann).json
    daemon.call("shell.exec.v1", {"command": "true"}, sandbox=box, key=ann)
    daemon.ask("POST", f"{path}/renew", {"ttl": "9m"}, key=ann)
    refused = daemon.ask("POST", "/v1/keys", {"name": "x", "scopes": ["read"]}, key=ann)
    assert refused.status == 403
    daemon.ask("DELETE", path, key=ann)
    until(lambda: _told(_read(daemon, ann, after=start))[-1:] == [("ended", "")])
    page = _read(daemon, ann, after=start)
    assert _told(page) == [
        ("created", ""),
        ("process", "started"),
        ("process", "ended"),
        ("process", "started"),
        ("process", "ended"),
        ("renewed", ""),
        ("decision", "denied"),
        ("ended", ""),
    ]
    events = page["events"]
    assert {e["sandbox"] for e in events if e["kind"] != "decision"} == {box}
    assert {e["principal"] for e in events} == {"ann"}
    assert events[0]["about"]["backend"] and events[0]["about"]["level"]
    assert events[2]["about"] == {
        "process": ran["process"],
        "state": "ended",
        "tag": "job",
        "code": "exited",
        "exit_code": 3,
    }
    assert events[-1]["about"]["reason"] == "destroyed"
    assert not page["lost"] and page["next"] == events[-1]["id"]
    assert [e["id"] for e in events] == [e["id"] for e in _by_pages(daemon, ann, start)]


def _by_pages(daemon: Daemon, key: str, after: str) -> list[Any]:
    found: list[Any] = []
    while events := (page := _read(daemon, key, after=after, limit=3))["events"]:
        assert len(events) <= 3
        found += events
        after = page["next"]
    return found


def test_another_sees_none_of_it_and_an_admin_all(daemon: Daemon) -> None:
    ann, bob = daemon.key("ann"), daemon.key("bob")
    starts = {who: _read(daemon, who)["next"] for who in (bob, "")}
    box = daemon.sandbox(key=ann)
    daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=ann)
    until(lambda: len(_read(daemon, "", after=starts[""])["events"]) == 2)
    assert _read(daemon, bob, after=starts[bob])["events"] == []
    refused = daemon.ask("GET", "/v1/events", key=daemon.key("eve", "run"))
    assert (refused.status, refused.code) == (403, "forbidden")


def test_who_waits_is_answered_when_something_happens_or_after_its_time(daemon: Daemon) -> None:
    ann = daemon.key("ann")
    start = _read(daemon, ann)["next"]
    assert _read(daemon, ann, after=start, wait="50ms")["events"] == []
    waiting = Later(lambda: daemon.ask("GET", f"/v1/events?after={start}&wait=60s", key=ann))
    box = daemon.sandbox(key=daemon.key("bob"))  # which is none of hers
    assert not waiting.is_over
    hers = daemon.sandbox(key=ann)
    (event,) = waiting.answer().json["events"]
    assert (event["kind"], event["sandbox"]) == ("created", hers)
    for id_ in (box, hers):
        daemon.ask("DELETE", f"/v1/sandboxes/{id_}")


def test_as_server_sent_events_it_goes_on_from_the_last_id(daemon: Daemon) -> None:
    ann = daemon.key("ann")
    start = _read(daemon, ann)["next"]
    first = daemon.sandbox(key=ann)
    with _stream(daemon, ann, start) as events:
        one = next(events)
        assert (one["event"], json.loads(one["data"])["sandbox"]) == ("created", first)
        second = daemon.sandbox(key=ann)
        two = next(events)
        assert json.loads(two["data"])["sandbox"] == second
    with _stream(daemon, ann, one["id"]) as events:
        assert next(events) == two
    for id_ in (first, second):
        daemon.ask("DELETE", f"/v1/sandboxes/{id_}")


@contextlib.contextmanager
def _stream(daemon: Daemon, key: str, last: str) -> Iterator[Iterator[dict[str, str]]]:
    connection = daemon.connect()
    headers = {"Accept": "text/event-stream", "Last-Event-ID": last, "X-API-Key": key}
    connection.request("GET", "/v1/events", headers=headers)
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream"

    def events() -> Iterator[dict[str, str]]:
        fields: dict[str, str] = {}
        while line := response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif fields:
                yield fields
                fields = {}

    with contextlib.closing(connection):
        yield events()


def test_ids_of_the_daemon_before_tell_that_events_are_lost() -> None:
    with running() as daemon:
        daemon.sandbox()
        before = _read(daemon)["next"]
        daemon.stop(kill=True)
        daemon.start()
        page = _read(daemon, after=before)
        assert page["lost"]
        assert not _read(daemon, after=page["next"])["lost"]
        connection = daemon.connect()
        headers = {"Accept": "text/event-stream", "Last-Event-ID": before}
        with contextlib.closing(connection):
            connection.request("GET", "/v1/events", headers=headers)
            told = connection.getresponse()
            assert told.readline().startswith(b"id: evt-")
            assert told.readline() == b"event: lost\n"


def test_what_a_policy_refuses_and_what_waits_for_somebody() -> None:
    with running(policy=RULES) as daemon:
        ann, eve = daemon.key("ann"), daemon.key("eve", "read", "approve")
        box = daemon.sandbox(key=ann)
        start = _read(daemon, ann)["next"]
        path = f"/v1/sandboxes/{box}/exec"
        assert (
            daemon.ask("POST", path, {"cmd": ["echo", "forbidden"]}, key=ann).code
            == "policy_denied"
        )
        (refused,) = _read(daemon, ann, after=start)["events"]
        assert (refused["kind"], refused["about"]["state"]) == ("decision", "denied")
        assert refused["about"]["reasons"] == ["no such word"]
        waiting = Later(lambda: daemon.ask("POST", path, {"cmd": ["echo", "ask"]}, key=ann))
        until(lambda: bool(_read(daemon, eve)["events"]))
        (asked,) = _read(daemon, eve)["events"]
        assert (asked["kind"], asked["about"]["state"]) == ("approval", "pending")
        id_ = asked["about"]["approval"]
        daemon.ask("POST", f"/v1/approvals/{id_}/decide", {"allow": False}, key=eve)
        assert waiting.answer().code == "approval_denied"
        assert _told(_read(daemon, eve)) == [("approval", "pending"), ("approval", "denied")]
        call = {"capability": "shell.exec.v1", "parameters": {"command": "echo", "args": ["ask"]}}
        waiting = Later(lambda: daemon.ask("POST", "/v1/call", call, key=ann))
        until(lambda: len(_read(daemon, eve)["events"]) == 3)
        *_, asked = _read(daemon, eve)["events"]
        assert asked["sandbox"] == ""  # one that was to be made for it
        id_ = asked["about"]["approval"]
        daemon.ask("POST", f"/v1/approvals/{id_}/decide", {"allow": False}, key=eve)
        assert waiting.answer().code == "approval_denied"


@pytest.mark.parametrize(
    "query", ["after=7", "limit=0", "limit=1001", "wait=soon", "wait=61s", "wait=-1", "before=1"]
)
def test_a_query_that_does_not_fit_is_refused_by_name(daemon: Daemon, query: str) -> None:
    refused = daemon.ask("GET", f"/v1/events?{query}")
    assert (refused.status, refused.code) == (400, "invalid_input")
    assert query.partition("=")[0].replace("after", "7") in refused.json["message"], refused.body


def test_the_client_reads_them(daemon: Daemon) -> None:
    with agentd.Client(daemon.url) as client:
        start = client.events.read().next
        with agentd.Sandbox.create(url=daemon.url, ttl="1m") as box:
            page = client.events.read(start, wait=30)
            assert [(e.kind, e.sandbox) for e in page.events] == [("created", box.id)]
        assert client.events.read(page.next, wait=30, limit=1).events[0].kind == "ended"


def test_the_command_line_prints_them_and_follows(daemon: Daemon) -> None:
    ann = daemon.key("ann")
    start = _read(daemon, ann)["next"]
    box = daemon.sandbox(key=ann)
    plain = daemon.cli("events", "--after", start, key=ann)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.split()[1:3] == [b"created", box.encode()]
    assert daemon.cli("events", key=ann).stdout.endswith(plain.stdout)  # all that is kept
    (line,) = daemon.cli("events", "--json", "--after", start, key=ann).stdout.splitlines()
    assert json.loads(line)["sandbox"] == box
    wrong = daemon.cli("events", "--after", "7", key=ann)
    assert wrong.returncode == 2 and b"no event's id" in wrong.stderr
    daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=ann)
