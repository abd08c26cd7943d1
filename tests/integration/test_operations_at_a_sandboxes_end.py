"""Whatever is under way at the end of a sandbox says truthfully why it ended, by each door."""

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.security.daemons import Daemon, Later, running, until

from agentd import Client, Sandbox
from agentd.model.errors import AgentdError

POLICY = """
default decision := {"allow": true}

decision := {"allow": true, "obligations": {"approve": true}} if {
	some word in input.parameters.args
	contains(word, "ghost")
}
"""
PORT = 8123
SERVER = f"""
import socket
server, kept = socket.create_server(("127.0.0.1", {PORT})), []
print("listens", flush=True)
while True:
    kept.append(server.accept())
"""
# What each end is called: by owner, by lease.
ENDS = {"delete": "cancelled", "cli": "cancelled", "lease": "lease_expired"}
RUNS = {"fs.write.v1": 2, "fs.read.v1": 2, "fs.list.v1": 1, "sandbox.port.v1": 2}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        yield made


def end_by(daemon: Daemon, end: str, box: str) -> None:
    if end == "delete":
        assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    elif end == "cli":
        assert daemon.cli("kill", box).returncode == 0
    else:
        renewed = daemon.ask("POST", f"/v1/sandboxes/{box}/renew", {"ttl": "1s"})
        assert renewed.status == 200, renewed.body


def slowly(going: threading.Event) -> Iterator[bytes]:
    while not going.wait(0.02):
        yield bytes(200_000)


def tar_of_one(going: threading.Event) -> Iterator[bytes]:
    head = bytearray(512)
    head[:3], head[100:108], head[124:136] = b"big", b"0000644\0", b"77777777777\0"
    head[148:156], head[156:157], head[257:265] = b" " * 8, b"0", b"ustar\x0000"
    head[148:156] = b"%06o\0 " % sum(head)
    yield bytes(head)
    yield from slowly(going)


def in_flight(client: Client, box: str, going: threading.Event) -> dict[str, Callable[[], object]]:
    def tunnelled() -> None:
        with contextlib.closing(client.ports.open(box, PORT)) as port:
            while port.recv():
                pass

    files = client.files
    return {
        "upload": lambda: files.write(box, "/workspace/up", slowly(going)),
        "tar in": lambda: files.write_tar(box, "/workspace", tar_of_one(going)),
        "watch": lambda: list(files.watch(box, "/workspace")),
        "tunnel": tunnelled,
    }


def told_of(work: Callable[[], object]) -> tuple[str, bool, bool]:
    """Code, who is to blame, and whether it says what helps."""
    try:
        work()
    except AgentdError as error:
        return error.code, error.infrastructure, bool(error.remediation)
    return "ok", False, False


@contextlib.contextmanager
def downloads(daemon: Daemon, box: str) -> Iterator[list[http.client.HTTPResponse]]:
    """Two that are under way, and that nobody reads for now."""
    found = []
    with contextlib.ExitStack() as stack:
        for what in ("files", "files/tar"):
            one = stack.enter_context(contextlib.closing(daemon.connect()))
            one.request("GET", f"/v1/sandboxes/{box}/{what}?path=/workspace/big")
            found.append(stack.enter_context(one.getresponse()))
        yield found


def served(daemon: Daemon, box: str, server: str = SERVER) -> None:
    at = f"/v1/sandboxes/{box}"
    sparse = "open('/workspace/big', 'wb').truncate(1 << 30)"
    assert daemon.ask("POST", f"{at}/exec", {"cmd": ["python3", "-c", sparse]}).status == 200
    asked = {"cmd": ["python3", "-c", server], "wait": False}
    process = daemon.ask("POST", f"{at}/exec", asked).json["id"]
    output = f"{at}/processes/{process}/output?stream=stdout"
    until(lambda: b"listens" in daemon.ask("GET", output).body)


def count(daemon: Daemon, kind: str, box: str) -> dict[str, int]:
    records = daemon.records(kind=kind, sandbox=box)
    return {name: sum(r.capability == name for r in records) for name in RUNS}


@pytest.mark.parametrize("end", ENDS)
def test_what_is_under_way_is_told_who_ended_its_sandbox(daemon: Daemon, end: str) -> None:
    code, box, going = ENDS[end], daemon.sandbox(), threading.Event()
    served(daemon, box)
    with Client(daemon.url) as client, downloads(daemon, box) as down:
        works = in_flight(client, box, going)
        later: dict[str, Later[Any]] = {
            name: Later(lambda work=work: told_of(work))  # type: ignore[misc]
            for name, work in works.items()
        }
        at = f"/v1/sandboxes/{box}/ports/{PORT}/"
        by_http = Later(lambda: daemon.ask("GET", at))
        try:
            until(lambda: count(daemon, "start", box) == RUNS)
            end_by(daemon, end, box)
            told = {name: one.answer() for name, one in later.items()}
            answer = by_http.answer()
            for response in down:
                with pytest.raises(http.client.IncompleteRead):
                    response.read()
        finally:
            going.set()
        until(lambda: count(daemon, "end", box) == RUNS)
    assert (answer.status, answer.code) == (410, code), answer.body
    assert told == dict.fromkeys(works, (code, False, True))
    causes = [(r.capability, r.fields["cause"]) for r in daemon.records(kind="end", sandbox=box)]
    for capability, cause in causes:
        if capability in RUNS:
            said = cause["code"], cause["infrastructure"]
            assert said == (code, False), (capability, cause)


@pytest.mark.parametrize("end", [*ENDS, "idle"])
def test_what_waits_for_approval_is_told_who_ended_its_sandbox(daemon: Daemon, end: str) -> None:
    ends_idle = {"idle_timeout": "5s", "on_idle": "end"} if end == "idle" else {}
    box = daemon.sandbox(**ends_idle)
    asked = {"cmd": ["echo", "ghost"]}
    later = Later(lambda: daemon.ask("POST", f"/v1/sandboxes/{box}/exec", asked))
    if end != "idle":
        until(lambda: any(v["state"] == "pending" for v in daemon.ask("GET", "/v1/approvals").json))
        end_by(daemon, end, box)
    answer = later.answer()
    assert (answer.status, answer.code) == (410, ENDS.get(end, "cancelled")), answer.body
    assert answer.json["cause"].startswith("its sandbox has ended"), answer.body
    assert answer.json["remediation"], answer.body
    denial = daemon.until_recorded(kind="denial", sandbox=box)
    assert denial.fields["approval"] == answer.code


@pytest.mark.parametrize("at", ["here", "a daemon"])
def test_an_upload_that_takes_all_its_memory_ends_for_that(daemon: Daemon, at: str) -> None:
    where = {"embedded": True} if at == "here" else {"url": daemon.url}
    with Sandbox.create(memory="48M", disk="1G", **where) as sandbox:
        if not sandbox.enforcement["memory"].enforced:
            pytest.skip("no cgroup of ours bounds memory here")
        pieces = (bytes(1 << 20) for _ in range(200))
        assert told_of(lambda: sandbox.files.write("/tmp/large", pieces)) == ("oom", False, True)
        if at == "a daemon":
            (end,) = daemon.records(kind="end", sandbox=sandbox.id)
            cause = end.fields["cause"]
            assert (cause["code"], cause["infrastructure"]) == ("oom", False), cause


def test_what_waits_for_approval_is_told_that_memory_ran_out(daemon: Daemon) -> None:
    with Sandbox.create(memory="48M", disk="1G", url=daemon.url) as sandbox:
        if not sandbox.enforcement["memory"].enforced:
            pytest.skip("no cgroup of ours bounds memory here")
        asked = f"/v1/sandboxes/{sandbox.id}/exec", {"cmd": ["echo", "ghost"]}
        later = Later(lambda: daemon.ask("POST", *asked))
        daemon.until_recorded(kind="approval_asked", sandbox=sandbox.id)
        pieces = (bytes(1 << 20) for _ in range(200))
        assert told_of(lambda: sandbox.files.write("/tmp/large", pieces))[0] == "oom"
        answer = later.answer()
    assert (answer.status, answer.code) == (410, "oom"), answer.body
