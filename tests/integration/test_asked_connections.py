"""Connections that a rule asks about: they wait, unsent, until a policy or somebody has decided."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_network_of_a_sandbox import _GVISOR, _greet
from tests.security.daemons import Daemon, Later, running, until

from agentd import Refused, Sandbox

RULE = "ask db.internal:5432"
_DIAL = """
import socket, sys
for where in sys.argv[1:]:
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 60) as sock:
            print(sock.recv(100).decode() or "nothing", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""
_RESET = "ConnectionResetError"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the host's, which greets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_greet, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _config(port: int, more: str = "") -> str:
    return f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["public", "private"]
[[egress.host]]
name = "db.internal"
address = "127.0.0.1:{port}"
[[egress.host]]
name = "db.corp.internal"
address = "127.0.0.1:{port}"
{more}
"""


@pytest.fixture(scope="module")
def daemon(port: int) -> Iterator[Daemon]:
    with running(_config(port)) as made:
        yield made


@pytest.fixture(scope="module")
def alice(daemon: Daemon) -> str:
    return daemon.key("alice", "run", "create", "read", "egress", "snapshot")


@pytest.fixture(scope="module")
def bob(daemon: Daemon) -> str:
    return daemon.key("bob", "approve", "read")


def _made(daemon: Daemon, key: str, *rules: str, **more: Any) -> Sandbox:
    made = daemon.ask("POST", "/v1/sandboxes", {"net": list(rules), **more}, key=key)
    assert made.status == 201, made.body
    return Sandbox.connect(made.json["id"], url=daemon.url)


def _dial(box: Sandbox, *where: str) -> list[str]:
    said = box.run(["python3", "-c", _DIAL, *where], check=True).stdout.decode()
    return said.split()


def _dial_later(box: Sandbox, *where: str) -> Later[list[str]]:
    return Later(lambda: _dial(box, *where))


def _pending(daemon: Daemon, key: str, box: Sandbox) -> list[dict[str, Any]]:
    found = daemon.ask("GET", "/v1/approvals", key=key).json
    return [v for v in found if v["state"] == "pending" and v["asked"]["sandbox"] == box.id]


def _asked(daemon: Daemon, key: str, box: Sandbox) -> dict[str, Any]:
    until(lambda: bool(_pending(daemon, key, box)))
    (found,) = _pending(daemon, key, box)
    return found


def _decide(daemon: Daemon, key: str, view: dict[str, Any], *, allow: bool) -> None:
    path = f"/v1/approvals/{view['id']}/decide"
    said = daemon.ask("POST", path, {"allow": allow, "note": "as agreed"}, key=key)
    assert said.status == 200, said.body


def _cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    argv, env = [sys.executable, "-m", "agentd", *words], {**os.environ, "AGENTD_URL": daemon.url}
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_what_waits_goes_on_once_it_is_approved_and_holds_for_the_sandbox(
    daemon: Daemon, alice: str, bob: str
) -> None:
    with _made(daemon, alice, RULE) as box:
        later = _dial_later(box, "db.internal:5432")
        view = _asked(daemon, bob, box)
        assert not later.is_over
        asked = view["asked"]
        assert (view["principal"], asked["capability"]) == ("alice", "network.connect")
        assert asked["parameters"] == {"host": "db.internal", "port": 5432, "rule": RULE}
        (row,) = [each for each in box.network.connections().connections if each.port]
        assert (row.allowed, row.ended, row.asked) == (False, False, True)
        assert " asked " in _cli(daemon, "net", "ls", box.id).stdout
        # Nobody decides on what is done in a sandbox of one's own, and only who holds the scope.
        path = f"/v1/approvals/{view['id']}/decide"
        assert daemon.ask("POST", path, {"allow": True}, key=alice).status == 403
        _decide(daemon, bob, view, allow=True)
        assert later.answer() == ["hello"]
        assert _dial(box, "db.internal:5432", "db.internal:5432") == ["hello", "hello"]
        assert not _pending(daemon, bob, box)
        page = box.network.connections()
        assert page.totals["asked"] == 1 and page.totals["allowed"] == 3
        assert page.hosts == {"db.internal": 3}
        # What was answered is this sandbox's alone: a fork of it asks anew.
        (fork,) = box.fork(1)
        with fork:
            later = _dial_later(fork, "db.internal:5432")
            _decide(daemon, bob, _asked(daemon, bob, fork), allow=False)
            assert later.answer() == [_RESET]
        assert _dial(box, "db.internal:5432") == ["hello"]


def test_what_is_denied_is_reset_and_stays_so_and_is_told(
    daemon: Daemon, alice: str, bob: str
) -> None:
    with _made(daemon, alice, RULE) as box:
        later = Later(lambda: box.run(["python3", "-c", _DIAL, "db.internal:5432"]))
        _decide(daemon, bob, _asked(daemon, bob, box), allow=False)
        done = later.answer()
        assert done.stdout.decode().split() == [_RESET]
        used = done.usage.network
        assert used and (used.asked, used.denied, used.allowed) == (1, 1, 0)
        why = "network.connect was not approved: bob: as agreed"
        (row,) = [each for each in box.network.connections().connections if each.port]
        assert (row.reason, row.rule, row.allowed, row.ended) == (why, RULE, False, True)
        assert f"db.internal:5432: {why}" in [
            reason
            for record in daemon.records(kind="denial", sandbox=box.id)
            for reason in record.fields["reasons"]
        ]
        decided = daemon.until_recorded(kind="approval_decided", sandbox=box.id)
        assert decided.capability == "network.connect" and decided.fields["allowed"] is False
        shown = _cli(daemon, "exec", box.id, "--", "python3", "-c", _DIAL, "db.internal:5432")
        assert shown.stdout.split() == [_RESET]
        assert not _pending(daemon, bob, box)
        assert why in _cli(daemon, "net", "ls", box.id).stdout
        told = _cli(daemon, "receipt", "show", done.receipt).stdout
        assert "0 connections, 1 refused, 1 asked about" in told


_MANY = """
import select, socket, sys
poll, kept = select.poll(), []
for where in sys.argv[2:] * int(sys.argv[1]):
    host, _, port = where.rpartition(":")
    try:
        address = socket.getaddrinfo(host, int(port), socket.AF_INET)[0][4]
    except OSError:
        continue
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(address)
    poll.register(sock, select.POLLIN)
    kept.append(sock)
print("begun", flush=True)
left, said = len(kept), {"hello": 0}
while left:
    for fd, _ in poll.poll():
        poll.unregister(fd)
        left -= 1
        one = next(each for each in kept if each.fileno() == fd)
        try:
            data = one.recv(100).decode()
        except OSError as error:
            data = type(error).__name__
        said[data] = said.get(data, 0) + 1
print(said["hello"], sum(said.values()))
"""


def test_many_connections_to_one_place_are_one_question(
    daemon: Daemon, alice: str, bob: str
) -> None:
    with _made(daemon, alice, RULE) as box:
        many = ["python3", "-c", _MANY, "1000", "db.internal:5432"]
        later = Later(lambda: box.run(many, check=True))
        view = _asked(daemon, bob, box)
        until(lambda: box.network.connections().totals["denied"] >= 1000 - 64)
        assert [one["id"] for one in _pending(daemon, bob, box)] == [view["id"]]
        _decide(daemon, bob, view, allow=True)
        _begun, served, all_of_them = later.answer().stdout.split()
        assert (int(served), int(all_of_them)) == (64, 1000)
        reasons = {each.reason for each in box.network.connections().connections}
        assert "64 connections of the sandbox wait to be allowed" in reasons


def test_many_places_are_few_questions(daemon: Daemon, alice: str, bob: str) -> None:
    with _made(daemon, alice, "ask *.my.internal:443") as box:
        places = [f"n{n}.my.internal:443" for n in range(200)]
        later = Later(lambda: box.run(["python3", "-c", _MANY, "1", *places]))
        until(lambda: box.network.connections().totals["denied"] >= 200 - 16)
        until(lambda: len(_pending(daemon, bob, box)) == 16)
        # Rules that do not ask any more have nobody asked any more.
        box.network.set([])
        later.answer()
        until(lambda: not _pending(daemon, bob, box))
        reasons = {each.reason for each in box.network.connections().connections}
        assert "16 questions of the sandbox wait to be answered" in reasons


def test_other_rules_judge_what_waits_anew(daemon: Daemon, alice: str, bob: str) -> None:
    with _made(daemon, alice, RULE) as box:
        first = _dial_later(box, "db.internal:5432")
        view = _asked(daemon, bob, box)
        box.network.set([RULE, "pypi"])
        assert [one["id"] for one in _pending(daemon, bob, box)] == [view["id"]]
        assert not first.is_over
        box.network.set(["db.internal:5432"])  # what another rule allows nobody is asked about
        assert first.answer() == ["hello"]
        until(lambda: not _pending(daemon, bob, box))
        box.network.set([RULE])
        second = _dial_later(box, "db.internal:5432")
        _asked(daemon, bob, box)
        box.network.set([RULE, "!db.internal"])
        assert second.answer() == [_RESET]
        until(lambda: not _pending(daemon, bob, box))
        last = box.network.connections().connections[-1]
        assert last.reason == "the rules were changed: denied by !db.internal"
        # An answer is forgotten with the rule that asked.
        box.network.set([RULE])
        third = _dial_later(box, "db.internal:5432")
        _decide(daemon, bob, _asked(daemon, bob, box), allow=True)
        assert third.answer() == ["hello"]
        box.network.set([])
        box.network.set([RULE])
        fourth = _dial_later(box, "db.internal:5432")
        _decide(daemon, bob, _asked(daemon, bob, box), allow=False)
        assert fourth.answer() == [_RESET]


def test_what_may_not_be_granted_cannot_be_asked_about(daemon: Daemon, alice: str) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"net": ["ask host.agentd.internal:22"]}, key=alice)
    assert made.status == 403 and "not allowed here" in made.json["message"]
    with pytest.raises(Refused, match="without a daemon nobody is there to be asked"):
        Sandbox.create(net=[RULE], embedded=True)
    with Sandbox.create(net=["pypi"], embedded=True) as box, pytest.raises(Refused, match="asks"):
        box.network.set([RULE])


def test_a_sandbox_that_ends_asks_no_more(daemon: Daemon, alice: str, bob: str) -> None:
    box = _made(daemon, alice, RULE)
    box.run(["sh", "-c", 'python3 -c "$0" db.internal:5432 >/dev/null 2>&1 &', _DIAL])
    _asked(daemon, bob, box)
    box.kill()
    until(lambda: not _pending(daemon, bob, box))


_QEMU = [pytest.mark.needs("qemu-system-x86_64"), pytest.mark.timeout(900)]


@pytest.mark.parametrize("wall", ["oci", _GVISOR, pytest.param("qemu", marks=_QEMU)])
def test_other_walls_ask_as_well(daemon: Daemon, alice: str, bob: str, wall: str) -> None:
    with _made(daemon, alice, RULE, backend=wall) as box:
        later = _dial_later(box, "db.internal:5432")
        _decide(daemon, bob, _asked(daemon, bob, box), allow=True)
        assert later.answer() == ["hello"]


@pytest.mark.parametrize(
    ("rules", "target", "code", "said"),
    [
        ("ask public", "https://example.com", 1, "asked about, by ask public"),
        ("pypi,ask public", "https://pypi.org/simple", 0, "allowed by pypi"),
        ("ask public,!example.com", "https://example.com", 1, "refused: denied by !example.com"),
        ("ask example.com:22", "https://example.com", 1, "refused: port 443 is not among 22"),
        ("ask 10.0.0.0/8:5432", "10.1.2.3:5432", 1, "asked about, by ask 10.0.0.0/8:5432"),
        ("ask public", "10.1.2.3:5432", 1, "refused: no rule has the address 10.1.2.3"),
        ("ask npm", "https://registry.npmjs.org", 1, "asked about, by ask npm"),
    ],
)
def test_what_is_asked_about_is_explained(rules: str, target: str, code: int, said: str) -> None:
    argv = [sys.executable, "-m", "agentd", "net", "explain", target, "--net", rules]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip().partition(" is ")[2]) == (code, said)
    found = json.loads(subprocess.run([*argv, "--json"], capture_output=True, check=False).stdout)
    assert found["ask"] is said.startswith("asked") and found["allowed"] is (code == 0)


# --- what a policy says, and who is not there ---

_POLICY = """
host := input.parameters.host

decision := {"allow": true} if { input.capability.name != "network.connect" }
else := {"allow": true, "reasons": ["ours.yes: known"]} if {
	startswith(host, "yes")
	input.principal == {"name": "alice", "scopes": ["egress"], "via": "sandbox"}
	input.parameters.port == 5432
	input.parameters.rule == "ask yes.my.internal:5432"
	input.sandbox.net == "restricted"
}
else := {"allow": false, "reasons": ["ours.no: unknown"]} if { startswith(host, "no") }
else := {"allow": true, "obligations": {"level": "microvm"}} if { startswith(host, "strong") }
else := {"allow": true, "obligations": {"approve": true}} if { startswith(host, "late") }
"""
_HOSTS = ("yes", "no", "odd", "strong", "late")


@pytest.fixture(scope="module")
def judging(port: int) -> Iterator[Daemon]:
    own = "".join(
        f'[[egress.host]]\nname = "{name}.my.internal"\naddress = "127.0.0.1:{port}"\n'
        for name in _HOSTS
    )
    with running(_config(port, own + '[approvals]\nttl = "1s"\n'), policy=_POLICY) as made:
        yield made


def test_a_policy_allows_denies_or_fails_by_itself(judging: Daemon) -> None:
    key = judging.key("alice", "run", "create", "read", "egress")
    places = [f"{name}.my.internal:5432" for name in _HOSTS]
    with _made(judging, key, *(f"ask {place}" for place in places)) as box:
        assert _dial(box, *places) == ["hello", *[_RESET] * 4]
        rows = box.network.connections().connections
        said = {row.name.partition(".")[0]: row.reason for row in rows if row.port}
        assert said["yes"] == ""
        assert said["no"].endswith("call network.connect: ours.no: unknown")
        assert said["odd"].startswith("the policy could not decide on network.connect: ")
        assert "microvm" in said["strong"]
        assert said["late"] == "nobody approved network.connect in time: nobody decided in time"
        for kind in ("undecided", "approval_expired"):
            assert judging.until_recorded(kind=kind, sandbox=box.id).capability == "network.connect"
        allowed = judging.records(kind="admission", capability="network.connect", sandbox=box.id)
        assert ["ours.yes: known"] in [list(one.fields["reasons"]) for one in allowed]


def test_what_was_refused_is_what_a_run_ends_with(judging: Daemon) -> None:
    place = "no.my.internal:5432"
    words = ["run", "--net", f"ask {place}", "--", "python3", "-c", f"{_DIAL}\nsys.exit(1)", place]
    done = judging.cli(*words)
    assert done.returncode == 1 and done.stdout.split() == [_RESET.encode()]
    told = done.stderr.decode().strip().splitlines()[-1]
    assert told.startswith(f"agentd run: the network refused {place} (the policy does not allow ")
    assert told.endswith("to call network.connect: ours.no: unknown)")


def _runs(marker: str) -> bool:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return any(marker.encode() in line.split(b"\0") for line in found)


def test_a_daemon_that_is_gone_allows_nothing_and_the_next_is_asked(port: int) -> None:
    config = _config(port, '[policy]\nbundle = "none"\n[approvals]\nself_approve = true\n')
    with running(config) as daemon, _made(daemon, "", RULE, "ask never.my.internal:5432") as box:

        def begin(*where: str) -> str:
            """Dial on, whatever becomes of who asked for it; what shows that it goes on."""
            script = 'python3 -c "$@" >/workspace/said 2>&1 &'
            box.run(["sh", "-c", script, "sh", _DIAL, *where, marker := f"{box.id}:1"], check=True)
            return marker

        marker = begin("db.internal:5432", "db.internal:5432")
        view = _asked(daemon, "", box)
        daemon.stop(kill=True)
        until(lambda: not _runs(marker))
        daemon.start()
        assert box.files.read_text("/workspace/said").split()[:2] == [_RESET] * 2
        rows = [row for row in box.network.connections().connections if row.port]
        first, *others = [row.reason for row in rows]
        assert first == "the daemon went away before it had decided"
        # More than one where it is reset before connect(2) is back: the name has two addresses.
        assert set(others) == {"no daemon is there to be asked"}
        assert daemon.ask("GET", f"/v1/approvals/{view['id']}").json["state"] == "expired"
        # Nothing of it is kept: the next daemon is asked, and what that allows lasts.
        later = _dial_later(box, "db.internal:5432")
        _decide(daemon, "", _asked(daemon, "", box), allow=True)
        assert later.answer() == ["hello"]
        marker = begin("never.my.internal:5432")
        _asked(daemon, "", box)
        daemon.stop()
        until(lambda: not _runs(marker))
        daemon.start()
        assert box.files.read_text("/workspace/said").split()[:1] == [_RESET]
        assert _dial(box, "db.internal:5432") == ["hello"]
        assert not _pending(daemon, "", box)


def test_no_wildcard_answers_for_a_host_of_the_operators(
    daemon: Daemon, alice: str, bob: str
) -> None:
    """Whoever may be reached by its whole name, once somebody was asked, is by that alone."""
    host = "db.corp.internal"
    for rule in (f"ask {host}:5432", f"read {host}:5432/v1/*"):
        with _made(daemon, alice, rule, "*.corp.internal:7000") as box:
            assert _dial(box, f"{host}:7000") == [_RESET]
            assert not _pending(daemon, bob, box)


_GIVES_UP = """
import socket, sys
for port in [*[5432] * 64, 5433]:
    socket.create_connection(("db.internal", port), 60).close()
"""


def test_programs_that_give_up_wait_no_more_where_others_do(
    daemon: Daemon, alice: str, bob: str
) -> None:
    """As one does that tries again every few seconds; each end of it is closed, and not reset."""
    with _made(daemon, alice, "ask db.internal:*") as box:
        box.run(["python3", "-c", _GIVES_UP], check=True)
        until(lambda: len(_pending(daemon, bob, box)) == 2)
        ports = {view["asked"]["parameters"]["port"] for view in _pending(daemon, bob, box)}
        assert ports == {5432, 5433}


_KEEPS_ALL = """
import select, socket
kept = [socket.create_connection(("db.internal", 5432), 60) for _ in range(64)]
other = socket.create_connection(("db.internal", 5433), 60)
ended, _, _ = select.select(kept, [], [], 60)
print(len(ended), flush=True)
other.recv(1)
"""


def test_another_place_is_asked_about_where_one_has_all_that_may_wait(
    daemon: Daemon, alice: str, bob: str
) -> None:
    with _made(daemon, alice, "ask db.internal:*") as box:
        with box.start(["python3", "-c", _KEEPS_ALL]) as process:
            assert next(iter(process)).text == "1\n"
            until(lambda: len(_pending(daemon, bob, box)) == 2)
        ports = {view["asked"]["parameters"]["port"] for view in _pending(daemon, bob, box)}
        assert ports == {5432, 5433}
