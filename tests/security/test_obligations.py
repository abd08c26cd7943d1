"""Threat: a policy allows something on a condition, and it is done without.

Control: what a policy obliges to is built into a sandbox that is made, and a sandbox that is there
and is less is refused, by whatever way it is asked; bounds of a command are the lower of both.
"""

import json
from collections.abc import Callable

import pytest
from tests.security.daemons import ORDINARY, Answer, Daemon, fixture

# By who asks. An admin is obliged to nothing: what an admin's key makes is weaker than must be.
POLICY = """
decision := {"allow": true, "obligations": duties}

default duties := {}

duties := {"level": "namespace"} if {
	input.principal.name == "walled"
	not admin
} else := {"limits": {"memory": 67108864, "pids": 32}} if {
	input.principal.name == "small"
	not admin
} else := {"limits": {"timeout": 3, "output": 100}} if {
	input.principal.name == "short"
	not admin
} else := {"no_network": true} if {
	input.principal.name == "alone"
	not admin
}

admin if "admin" in input.principal.scopes
"""
NETWORKS = '[sandbox]\nminimum = "none"\nnetworks = ["none", "host"]\n'

daemon = fixture(NETWORKS, policy=POLICY)


def made(daemon: Daemon, who: str, *, free: bool = False, **wanted: object) -> Answer:
    """A sandbox of ``who``; ``free`` of what the policy obliges them to."""
    key = daemon.key(who, "admin") if free else daemon.key(who)
    return daemon.ask("POST", "/v1/sandboxes", {"ttl": "5m", **wanted}, key=key)


def box(daemon: Daemon, who: str, *, free: bool = False, **wanted: object) -> str:
    answer = made(daemon, who, free=free, **wanted)
    assert answer.status == 201, answer.body
    id_: str = answer.json["id"]
    return id_


Way = Callable[[Daemon, str, str], Answer]


def _rest(method: str, path: str, body: object = None) -> Way:
    return lambda daemon, id_, key: daemon.ask(method, f"/v1/sandboxes/{id_}/{path}", body, key=key)


WAYS: dict[str, Way] = {
    "exec": _rest("POST", "exec", {"cmd": "true"}),
    "exec without waiting": _rest("POST", "exec", {"cmd": "true", "wait": False}),
    "a call": lambda daemon, id_, key: daemon.call(
        "shell.exec.v1", {"command": "true"}, sandbox=id_, key=key
    ),
    "a call that lists": lambda daemon, id_, key: daemon.call(
        "fs.list.v1", {"path": "/"}, sandbox=id_, key=key
    ),
    "writing a file": _rest("PUT", "files?path=/tmp/x", b"x"),
    "listing": _rest("GET", "files/list?path=/"),
    "a tar": _rest("GET", "files/tar?path=/tmp"),
    "a port": _rest("GET", "ports/8080/"),
    "a snapshot": _rest("POST", "snapshot"),
    "a fork": _rest("POST", "fork", {"count": 1}),
}
LESS: dict[str, tuple[dict[str, object], str]] = {
    "walled": ({"isolation": "process", "backend": "landlock"}, "level namespace"),
    "small": ({"memory": "128M", "pids": 16}, "memory of at most"),
    "alone": ({"net": "host"}, "no network"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", LESS)
def test_a_sandbox_that_is_less_does_nothing_by_any_way(daemon: Daemon, who: str, way: str) -> None:
    wanted, said = LESS[who]
    id_ = box(daemon, who, free=True, **wanted)
    try:
        # A fork of what has the host's network takes that scope, too.
        answer = WAYS[way](daemon, id_, daemon.key(who, *ORDINARY, "net"))
        assert (answer.status, answer.code) == (403, "policy_denied"), answer.body
        assert said in answer.json["message"]
        request = answer.headers["x-request-id"]
        daemon.until_recorded(kind="denial", request=request)
        kinds = [r.kind for r in daemon.records(request=request)]
        assert kinds == ["admission", "denial"]
    finally:
        daemon.ask("DELETE", f"/v1/sandboxes/{id_}")


def test_a_bare_one_has_the_usual_bound_which_may_be_too_high(daemon: Daemon) -> None:
    id_ = box(daemon, "small", free=True)
    answer = WAYS["exec"](daemon, id_, daemon.key("small"))
    assert answer.code == "policy_denied" and "the sandbox has 1 GiB" in answer.json["cause"]


@pytest.mark.parametrize("way", ["exec", "a call", "listing", "writing a file"])
@pytest.mark.parametrize("who", LESS)
def test_one_that_is_made_has_what_must_be_and_works(daemon: Daemon, who: str, way: str) -> None:
    answer = WAYS[way](daemon, box(daemon, who), daemon.key(who))
    assert answer.status in (200, 201), answer.body


class TestNew:
    def test_a_weaker_wall_becomes_the_one_that_must_be(self, daemon: Daemon) -> None:
        assert made(daemon, "walled", isolation="none").json["level"] == "namespace"
        assert made(daemon, "walled", isolation="none", free=True).json["level"] == "none"

    def test_a_backend_that_has_none_is_refused(self, daemon: Daemon) -> None:
        answer = made(daemon, "walled", backend="landlock", isolation="process")
        assert answer.status in (403, 503) and answer.code in ("refused", "unavailable")

    @pytest.mark.parametrize("asked", [{}, {"memory": "128M"}, {"memory": "128M", "pids": 1000}])
    def test_bounds_are_the_lower_of_both(self, daemon: Daemon, asked: dict[str, object]) -> None:
        """Asked of the kernel, from inside and out."""
        view = made(daemon, "small", **asked).json
        hog = "python3 -c 'x = bytearray(100 << 20); x[::4096] = b\"x\" * len(x[::4096])'"
        answer = daemon.ask(
            "POST", f"/v1/sandboxes/{view['id']}/exec", {"cmd": hog}, key=daemon.key("small")
        )
        assert answer.json["cause"]["code"] == "oom"
        fork = "for i in $(seq 60); do sleep 3 & done; wait"
        answer = daemon.ask(
            "POST", f"/v1/sandboxes/{view['id']}/exec", {"cmd": fork}, key=daemon.key("small")
        )
        assert answer.json["cause"]["code"] == "pids_limit" or "fork" in answer.json["stderr"]

    def test_lower_ones_stay(self, daemon: Daemon) -> None:
        id_ = box(daemon, "small", memory="32M")
        hog = "python3 -c 'x = bytearray(48 << 20); x[::4096] = b\"x\" * len(x[::4096])'"
        answer = daemon.ask(
            "POST", f"/v1/sandboxes/{id_}/exec", {"cmd": hog}, key=daemon.key("small")
        )
        assert answer.json["cause"]["code"] == "oom"

    def test_a_network_is_refused_and_not_left_out(self, daemon: Daemon) -> None:
        key = daemon.key("alone", *ORDINARY, "net")
        answer = daemon.ask("POST", "/v1/sandboxes", {"net": "host"}, key=key)
        assert answer.code == "policy_denied" and "no network" in answer.json["message"]
        answer = daemon.call("shell.exec.v1", {"command": "true"}, create={"net": "host"}, key=key)
        assert answer.code == "policy_denied"

    def test_nor_does_what_acts_in_the_daemon_reach_one(self, daemon: Daemon) -> None:
        answer = daemon.call("http.fetch.v1", {"url": "http://a.invalid/"}, key=daemon.key("alone"))
        assert answer.code == "policy_denied" and "no network" in answer.json["message"]

    def test_a_run_is_held_to_it_as_well(self, daemon: Daemon) -> None:
        body = {"sandbox": {"isolation": "none"}, "exec": {"cmd": "true"}}
        answer = daemon.ask("POST", "/v1/run", body, key=daemon.key("walled"))
        assert answer.json["sandbox"]["level"] == "namespace"

    def test_a_call_s_own_sandbox_is_made_so(self, daemon: Daemon) -> None:
        answer = daemon.call(
            "fs.list.v1", {"path": "/"}, create={"isolation": "process"}, key=daemon.key("walled")
        )
        assert answer.json["sandbox"]["level"] == "namespace"


class TestShort:
    """Bounds of time and output hold for each command, also in a sandbox that has wider ones."""

    WAITS = "sleep 300"
    PRINTS = "i=0; while [ $i -lt 500 ]; do echo 0123456789; i=$((i+1)); done"

    @pytest.fixture
    def wide(self, daemon: Daemon) -> str:
        return box(daemon, "short", free=True, timeout="1m", output="1M")

    @pytest.mark.parametrize("asked", [{}, {"timeout": "50s"}])
    def test_of_an_exec(self, daemon: Daemon, wide: str, asked: dict[str, object]) -> None:
        path, key = f"/v1/sandboxes/{wide}/exec", daemon.key("short")
        ended = daemon.ask("POST", path, {"cmd": self.WAITS, **asked}, key=key).json
        assert ended["cause"]["code"] == "timeout"
        ended = daemon.ask("POST", path, {"cmd": self.PRINTS, **asked}, key=key).json
        assert ended["cause"]["code"] == "output_limit" and len(ended["stdout"]) == 100

    def test_of_one_that_nobody_waits_for(self, daemon: Daemon, wide: str) -> None:
        path, key = f"/v1/sandboxes/{wide}", daemon.key("short")
        for cmd, code in ((self.WAITS, "timeout"), (self.PRINTS, "output_limit")):
            begun = daemon.ask("POST", f"{path}/exec", {"cmd": cmd, "wait": False}, key=key).json
            where = f"{path}/processes/{begun['id']}/output?follow=true"
            events = daemon.ask("GET", where, key=key, Accept="text/event-stream").body
            last = json.loads(events.decode().rstrip("\n").split("data: ")[-1])
            assert last["cause"]["code"] == code

    def test_of_a_call(self, daemon: Daemon, wide: str) -> None:
        key = daemon.key("short")
        for script, code in ((self.WAITS, "timeout"), (self.PRINTS, "output_limit")):
            asked = {"command": "sh", "args": ["-c", script], "timeout_ms": 50_000}
            ended = daemon.call("shell.exec.v1", asked, sandbox=wide, key=key).json
            assert ended["cause"]["code"] == code

    def test_without_the_policy_they_are_wide(self, daemon: Daemon, wide: str) -> None:
        path, free = f"/v1/sandboxes/{wide}/exec", daemon.key("short", "admin")
        ended = daemon.ask("POST", path, {"cmd": self.PRINTS}, key=free).json
        assert ended["cause"]["code"] == "exited" and len(ended["stdout"]) == 5500
