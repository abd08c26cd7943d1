"""``wait``: a sandbox that has no room in its principal's quota yet is made once there is some."""

import contextlib
import json
import signal
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, Later, running, until

TWO = """
[quotas.principals.ann]
sandboxes = 2
memory = "2G"
[quotas.principals.bob]
sandboxes = 1
[quotas.principals.none]
sandboxes = 0
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(config=TWO) as made:
        yield made


@pytest.fixture
def full(daemon: Daemon) -> Iterator[tuple[str, list[str]]]:
    """Ann's key, and her sandboxes, which are all that she may have."""
    key = daemon.key("ann")
    boxes = [daemon.sandbox(key=key, memory="256M") for _ in range(2)]
    yield key, boxes
    for view in daemon.ask("GET", "/v1/sandboxes", key=key).json["sandboxes"]:
        daemon.ask("DELETE", f"/v1/sandboxes/{view['id']}", key=key)
    until(lambda: _queue(daemon) == 0)


def _queue(daemon: Daemon) -> int:
    waiting: int = daemon.ask("GET", "/v1/stats").json["queue"]
    return waiting


def _create(daemon: Daemon, key: str, waiting: int, **wanted: object) -> Later:
    """One that has lined up as the ``waiting``th."""
    body = {"memory": "256M", "wait": "2m", **wanted}
    later = Later(lambda: daemon.ask("POST", "/v1/sandboxes", body, key=key))
    until(lambda: _queue(daemon) == waiting or later.is_over)
    assert not later.is_over, later.answer().body
    return later


def test_without_wait_it_is_refused_at_once(daemon: Daemon, full: tuple[str, list[str]]) -> None:
    for body in ({}, {"wait": None}, *({"wait": none} for none in (0, 0.0, "0", "0s", "0.0 min"))):
        refused = daemon.ask("POST", "/v1/sandboxes", body, key=full[0])
        assert (refused.status, refused.code) == (429, "quota_exceeded")
    wrong = daemon.ask("POST", "/v1/sandboxes", {"wait": ""}, key=full[0])
    assert (wrong.status, wrong.code) == (400, "invalid_input")
    for most in (3601, "61m", "366d", "9" * 40):
        more = daemon.ask("POST", "/v1/sandboxes", {"wait": most}, key=full[0])
        assert (more.status, more.code) == (400, "invalid_input")
        assert "is more than the 1h allowed" in more.json["message"]


def test_they_are_made_in_the_order_in_which_they_asked(
    daemon: Daemon, full: tuple[str, list[str]]
) -> None:
    key, boxes = full
    waiting = [_create(daemon, key, n + 1, labels={"n": str(n)}) for n in range(3)]
    made = []
    for n, later in enumerate(waiting):
        daemon.ask("DELETE", f"/v1/sandboxes/{boxes[n]}", key=key)
        answer = later.answer()
        assert answer.status == 201, answer.body
        assert answer.json["labels"] == {"n": str(n)}
        made.append(answer.json["id"])
        boxes.append(made[-1])
        assert not any(each.is_over for each in waiting[n + 1 :])
    listed = daemon.ask("GET", "/v1/sandboxes", key=key).json["sandboxes"]
    assert {view["id"] for view in listed} == set(made[1:])


def test_one_that_does_not_wait_does_not_pass_those_that_do(
    daemon: Daemon, full: tuple[str, list[str]]
) -> None:
    """The first wants more memory than is free, and would never have it else."""
    key, boxes = full
    large = _create(daemon, key, 1, memory="2G")
    daemon.ask("DELETE", f"/v1/sandboxes/{boxes[0]}", key=key)
    small = daemon.ask("POST", "/v1/sandboxes", {"memory": "256M"}, key=key)
    assert (small.status, small.code) == (429, "quota_exceeded")
    assert "1 request waits" in small.json["message"]
    daemon.ask("DELETE", f"/v1/sandboxes/{boxes[1]}", key=key)
    assert large.answer().status == 201


def test_after_its_time_it_is_refused_and_takes_no_place(
    daemon: Daemon, full: tuple[str, list[str]]
) -> None:
    key, boxes = full
    refused = daemon.ask("POST", "/v1/sandboxes", {"wait": "200ms"}, key=key)
    assert (refused.status, refused.code) == (429, "quota_exceeded")
    assert "0.2 s" in refused.json["cause"]
    daemon.ask("DELETE", f"/v1/sandboxes/{boxes[0]}", key=key)
    assert daemon.ask("POST", "/v1/sandboxes", {}, key=key).status == 201


def test_who_hangs_up_leaves_the_queue(daemon: Daemon, full: tuple[str, list[str]]) -> None:
    key, boxes = full
    with contextlib.closing(daemon.connect()) as gone:
        body = json.dumps({"wait": "5m", "memory": "256M"})
        headers = {"Content-Type": "application/json", "X-API-Key": key}
        gone.request("POST", "/v1/sandboxes", body, headers)
        until(lambda: _queue(daemon) == 1)
        second = _create(daemon, key, 2)
    until(lambda: _queue(daemon) == 1)
    daemon.ask("DELETE", f"/v1/sandboxes/{boxes[0]}", key=key)
    assert second.answer().status == 201


def test_another_principal_waits_for_its_own_alone(
    daemon: Daemon, full: tuple[str, list[str]]
) -> None:
    key, boxes = full
    later = _create(daemon, key, 1)
    bob = daemon.key("bob")
    box = daemon.sandbox(key=bob)
    assert not later.is_over
    daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=bob)
    assert _queue(daemon) == 1
    daemon.ask("DELETE", f"/v1/sandboxes/{boxes[0]}", key=key)
    assert later.answer().status == 201


def test_what_can_never_be_is_not_waited_for(daemon: Daemon) -> None:
    for name, body in (("none", {"wait": "1h"}), ("ann", {"wait": "1h", "memory": "3G"})):
        refused = daemon.ask("POST", "/v1/sandboxes", body, key=daemon.key(name))
        assert (refused.status, refused.code) == (429, "quota_exceeded"), name


@pytest.mark.parametrize("wait", ["soon", -1, "61m", True])
def test_a_wait_that_is_none_is_refused_by_name(daemon: Daemon, wait: object) -> None:
    refused = daemon.ask("POST", "/v1/sandboxes", {"wait": wait})
    assert refused.status == 400 and "wait" in refused.json["message"], refused.body


def test_a_call_says_that_it_does_not_wait(daemon: Daemon) -> None:
    refused = daemon.call("shell.exec.v1", {"command": "true"}, create={"wait": "1m"})
    assert refused.status == 400 and "has no 'wait'" in refused.json["message"]


def test_one_that_a_smaller_quota_has_no_room_for_lets_the_others_pass() -> None:
    with running(config=TWO) as daemon:
        key = daemon.key("ann")
        boxes = [daemon.sandbox(key=key, memory="256M") for _ in range(2)]
        large = _create(daemon, key, 1, memory="2G", wait="1h")
        small = _create(daemon, key, 2, wait="1h")
        daemon.configure(TWO.replace("2G", "1G"))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        refused = large.answer()
        assert (refused.status, refused.code) == (429, "quota_exceeded"), refused.body
        daemon.ask("DELETE", f"/v1/sandboxes/{boxes[0]}", key=key)
        assert small.answer().status == 201


def test_run_waits_too(daemon: Daemon, full: tuple[str, list[str]]) -> None:
    key, boxes = full
    body = {"sandbox": {"wait": "2m", "memory": "256M"}, "exec": {"cmd": ["echo", "here"]}}
    later = Later(lambda: daemon.ask("POST", "/v1/run", body, key=key))
    until(lambda: _queue(daemon) == 1)
    daemon.ask("DELETE", f"/v1/sandboxes/{boxes[0]}", key=key)
    assert later.answer().json["stdout"] == "here\n"


def test_a_daemon_that_ends_tells_those_who_wait() -> None:
    with running(config=TWO) as daemon:
        key = daemon.key("bob")
        daemon.sandbox(key=key)
        later = _create(daemon, key, 1)
        daemon.stop()
        answer = later.answer()
        assert (answer.status, answer.code) == (429, "full"), answer.body
        daemon.start()
