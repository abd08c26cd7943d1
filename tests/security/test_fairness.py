"""Threat: one caller, with or without a credential, takes all there is and keeps the others out.

Control: every room has a share for each principal, and looking and ending a room of their own; each
listener has connections of its own, of which those without a credential are the first to go.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests import ports
from tests.security.daemons import Daemon, Later, running, until


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def test_the_sandbox_that_is_full_says_so_and_lives(daemon: Daemon) -> None:
    """Commands, files, watches: whatever is one too many is a 429, and nothing is said to have
    died. What runs can still be signalled, and the lease renewed."""
    box = daemon.sandbox(pids=400)
    path = f"/v1/sandboxes/{box}"
    started, most = [], 64
    for _ in range(most + 1):
        answer = daemon.ask("POST", f"{path}/exec", {"cmd": ["sleep", "300"], "wait": False})
        if answer.status == 201:
            started.append(answer.json["id"])
    assert (answer.status, answer.code) == (429, "full"), answer.body
    assert len(started) == most
    waiting = [
        Later(lambda: daemon.ask("POST", f"{path}/exec", {"cmd": ["sleep", "300"]}))
        for _ in range(120 - most)
    ]
    until(lambda: len(_running(daemon, path)) == 120)
    started = _running(daemon, path)
    asked = {"cmd": "true"}
    call = {"capability": "shell.exec.v1", "parameters": {"command": "true"}, "sandbox": box}
    for method, where, body in (
        ("POST", f"{path}/exec", asked),
        ("POST", "/v1/call", call),
        ("PUT", f"{path}/files?path=/workspace/a", b"a"),
        ("GET", f"{path}/files?path=/etc/passwd", None),
        ("GET", f"{path}/files/list?path=/etc", None),
        ("GET", f"{path}/files/watch?path=/workspace", None),
        ("GET", f"{path}/files/tar?path=/etc", None),
    ):
        refused = daemon.ask(method, where, body)
        assert (refused.status, refused.code) == (429, "full"), (where, refused.body)
        assert "use another sandbox" in refused.json["remediation"]
    assert _running(daemon, path) == started
    assert daemon.ask("POST", f"{path}/renew", {"ttl": "5m"}).status == 200
    kill = f"{path}/processes/{started[0]}/signal"
    assert daemon.ask("POST", kill, {"signal": 9}).status == 204
    end = daemon.ask("GET", f"{path}/processes/{started[0]}/output?follow=true&stream=stdout")
    assert end.status == 200
    assert daemon.ask("POST", f"{path}/exec", asked).json["status"] == "ok"
    assert not [r for r in daemon.records(kind="end") if "backend_lost" in str(r.fields)]
    assert daemon.ask("DELETE", path).status == 204
    for one in waiting:
        one.answer()


def _running(daemon: Daemon, path: str) -> list[str]:
    views = daemon.ask("GET", f"{path}/processes").json
    return [view["id"] for view in views if view["state"] == "running"]


SMALL = """
[http]
connections = 24
waiting = 16
[[listen]]
address = "127.0.0.1:{port}"
plain = true
"""


@pytest.fixture(scope="module")
def port() -> int:
    return ports.free()


@pytest.fixture(scope="module")
def small(port: int) -> Iterator[Daemon]:
    with running(SMALL.format(port=port)) as made:
        yield made


def test_whoever_waits_for_all_there_is_leaves_room_to_the_others(small: Daemon) -> None:
    alice, bob = small.key("alice"), small.key("bob")
    boxes = [small.sandbox(bob) for _ in range(2)]
    with ExitStack() as stack:
        for number in range(8):
            path = f"/v1/sandboxes/{boxes[number % 2]}/exec"
            _hang(stack, small, "POST", path, bob, {"cmd": ["sleep", "300"]})
        until(lambda: sum(len(_running(small, f"/v1/sandboxes/{box}")) for box in boxes) == 8)
        path = f"/v1/sandboxes/{boxes[0]}"
        refused = small.ask("POST", f"{path}/exec", {"cmd": "true"}, key=bob)
        assert (refused.status, refused.code) == (429, "full")
        # The hog itself can still look, renew, signal and end.
        assert small.ask("GET", path, key=bob).status == 200
        assert small.ask("POST", f"{path}/renew", {"ttl": "5m"}, key=bob).status == 200
        mine = small.sandbox(alice)
        asked = {"cmd": "echo hi"}
        assert small.ask("POST", f"/v1/sandboxes/{mine}/exec", asked, key=alice).status == 200
        assert small.ask("GET", f"/v1/sandboxes/{mine}", key=alice).status == 200
        put = small.ask("PUT", f"/v1/sandboxes/{mine}/files?path=/workspace/a", b"a", key=alice)
        assert put.status == 200
        assert small.ask("DELETE", f"/v1/sandboxes/{mine}", key=alice).status == 204
        assert small.ask("GET", "/readyz").status == 200
        assert small.ask("DELETE", path).status == 204  # the admin's
    small.ask("DELETE", f"/v1/sandboxes/{boxes[1]}")


@pytest.mark.parametrize("call", [False, True])
def test_hanging_up_frees_the_place_and_ends_the_command(small: Daemon, call: bool) -> None:
    bob = small.key("bob")
    box = small.sandbox(bob)
    where, body = f"/v1/sandboxes/{box}/exec", {"cmd": ["sleep", "300"]}
    if call:
        parameters = {"command": "sleep", "args": ["300"]}
        where = "/v1/call"
        body = {"capability": "shell.exec.v1", "parameters": parameters, "sandbox": box}
    usage = f"/v1/sandboxes/{box}"
    for _ in range(2):
        with ExitStack() as stack:
            while not _refused(small, box, bob):
                _hang(stack, small, "POST", where, bob, body)
        until(lambda: not _refused(small, box, bob))
    until(lambda: not _running(small, usage))
    ends = [r for r in small.records(kind="end") if r.sandbox == box and "cancelled" in str(r)]
    assert len(ends) >= 16
    small.ask("DELETE", usage)


def test_a_keyed_command_goes_on_without_its_client(small: Daemon) -> None:
    bob = small.key("bob")
    box = small.sandbox(bob)
    path = f"/v1/sandboxes/{box}"
    body = {"cmd": "read line < go; echo $line"}
    assert small.ask("POST", f"{path}/exec", {"cmd": "mkfifo go"}, key=bob).status == 200
    with ExitStack() as stack:
        _hang(stack, small, "POST", f"{path}/exec", bob, body, key="stays")
        until(lambda: bool(_running(small, path)))
    again = Later(lambda: small.ask("POST", f"{path}/exec", body, key=bob, Idempotency_Key="stays"))
    assert small.ask("POST", f"{path}/exec", {"cmd": "echo on > go"}, key=bob).status == 200
    assert again.answer().json["stdout"] == "on\n"
    small.ask("DELETE", path)


def test_connections_without_a_credential_keep_nobody_out(small: Daemon, port: int) -> None:
    alice = small.key("alice")
    with ExitStack() as stack:
        for _ in range(200):
            idle = socket.create_connection(("127.0.0.1", port))
            stack.callback(idle.close)
        assert small.cli("ls").returncode == 0
        over_tcp = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        stack.callback(over_tcp.close)
        for _ in range(3):
            over_tcp.request("GET", "/v1/sandboxes", headers={"X-API-Key": alice})
            answer = over_tcp.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()


def test_a_principals_connections_leave_some_to_others(small: Daemon) -> None:
    alice, bob = small.key("alice"), small.key("bob")
    with ExitStack() as stack:
        statuses = []
        for _ in range(20):
            connection = small.connect()
            stack.callback(connection.close)
            connection.request("GET", "/v1/sandboxes", headers={"X-API-Key": bob})
            answer = connection.getresponse()
            statuses.append(answer.status)
            answer.read()
        assert statuses[:10] == [200] * 10 and statuses[-1] == 429, statuses
        assert small.ask("GET", "/v1/sandboxes", key=alice).status == 200
        assert small.cli("ls").returncode == 0


def _hang(
    stack: ExitStack,
    daemon: Daemon,
    method: str,
    path: str,
    of: str,
    body: object,
    key: str = "",
) -> None:
    """A request whose answer nobody reads; its client hangs up at the end of the block."""
    connection = daemon.connect()
    headers = {"X-API-Key": of, "Content-Type": "application/json"}
    headers |= {"Idempotency-Key": key} if key else {}
    connection.request(method, path, json.dumps(body).encode(), headers)
    stack.callback(connection.close)


def _refused(daemon: Daemon, box: str, of: str) -> bool:
    answer = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true"}, key=of)
    return answer.status == 429


@pytest.mark.parametrize("value", [b"{}", b'"ab"', b'[{"":0}]'])
def test_a_body_of_millions_of_values_takes_no_memory(small: Daemon, value: bytes) -> None:
    """Six of them took 4.6 GB, and a minute of every other caller's time."""
    head = b'{"capability":"shell.exec.v1","parameters":{"command":"true","args":['
    many = b",".join([value] * (8_000_000 // (len(value) + 1)))
    before = _peak(small)
    answer = small.ask("POST", "/v1/call", head + many + b"]}}")
    assert (answer.status, answer.code) == (400, "invalid_input")
    assert answer.json["message"] == "the body has over 262144 values"
    assert _peak(small) - before < 128 << 10
    # What a text holds is none of them.
    text = '[{,"' * 500_000
    body = {"capability": "fs.write.v1", "parameters": {"path": "/workspace/t", "content": text}}
    answer = small.ask("POST", "/v1/call", body)
    assert answer.json.get("value") == {"size": len(text)}, answer.body[:300]


def _peak(daemon: Daemon) -> int:
    """KiB that it ever had."""
    assert daemon.process is not None
    with open(f"/proc/{daemon.process.pid}/status") as status:
        return int(status.read().partition("VmHWM:")[2].split()[0])


def test_parameters_that_are_wrong_in_each_of_their_values_are_refused_by_the_first(
    small: Daemon,
) -> None:
    wrong = {"object": {str(n): n for n in range(50_000)}, "array": [{"no": 1}] * 50_000}
    tried = []
    for capability in small.ask("GET", "/v1/capabilities").json:
        for name, schema in capability["parameters"]["properties"].items():
            for kind in {"object", "array"} & {schema.get("type")}:
                answer = small.call(capability["name"], {name: wrong[kind]})
                assert (answer.status, answer.code) == (400, "invalid_input")
                assert len(answer.body) < 1000
                tried.append(f"{capability['name']} {name}")
    assert {"shell.exec.v1 env", "http.fetch.v1 headers"} <= set(tried)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"mounts": [f"/tmp:/x{n}" for n in range(50_000)]}, "more than 256 mounts and volumes"),
        ({"volumes": [f"v:/x{n}" for n in range(50_000)]}, "more than 256 mounts and volumes"),
        ({"mounts": ["/" + "a/" * 1_000_000 + ":/x"]}, "has a path of over 4096 characters"),
        ({"workspace": "/" + "a/" * 1_000_000}, "has a path of over 4096 characters"),
        ({"memory": "9" * 5000 + "G"}, "is not a size"),
        ({"disk": "9" * 400 + ".5G"}, "is not a size"),
        ({"ttl": "1h" * 100_000}, "is not a time"),
    ],
    ids=["mounts", "volumes", "mount", "workspace", "memory", "disk", "ttl"],
)
def test_what_would_take_hours_to_read_is_refused_before_that(
    small: Daemon, wanted: dict[str, object], said: str
) -> None:
    answer = small.ask("POST", "/v1/sandboxes", wanted)
    assert (answer.status, answer.code) == (400, "invalid_input")
    assert said in answer.json["message"] and len(answer.body) < 1000


def test_a_key_that_is_there_twice_behind_many_is_found_at_once(small: Daemon) -> None:
    names = [*(f"A{n}" for n in range(200_000)), "A199999"]
    body = '{"env":{' + ",".join(f'"{name}":"x"' for name in names) + "}}"
    answer = small.ask("POST", "/v1/sandboxes", body.encode())
    assert (answer.status, answer.code) == (400, "invalid_input")
    assert answer.json["message"] == "the body has the key 'A199999' twice"
