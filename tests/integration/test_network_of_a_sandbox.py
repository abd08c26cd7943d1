"""The network of a daemon's sandbox, by every door: its rules, others from now on, what it did."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from tests import gvisor
from tests.security.daemons import Daemon, running

from agentd import AsyncSandbox, InvalidInput, Refused, Sandbox

_GVISOR = pytest.param("gvisor", marks=[pytest.mark.needs("runsc"), pytest.mark.timeout(900)])
_DIAL = """
import socket, sys
try:
    with socket.create_connection(("db.internal", 5432), 20) as sock:
        print(sock.recv(100).decode())
except OSError:
    print("refused")
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the host's, which greets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_greet, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _greet(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client:
                client.sendall(b"hello")


@pytest.fixture(scope="module")
def daemon(port: int) -> Iterator[Daemon]:
    config = f"""
[sandbox]
networks = ["none", "restricted"]
[policy]
bundle = "strict"
[egress]
allow = ["public", "db.internal:5432"]
[[egress.host]]
name = "db.internal"
address = "127.0.0.1:{port}"
"""
    with running(config) as made:
        yield made


def _dials(sandbox: Sandbox) -> str:
    return sandbox.run(["python3", "-c", _DIAL], check=True).stdout.decode().strip()


def _cli(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agentd", *words, "--url", daemon.url]
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("wall", ["linux", _GVISOR])
def test_rules_hold_and_change_and_what_was_done_is_told(daemon: Daemon, wall: str) -> None:
    with Sandbox.create(url=daemon.url, backend=wall, net=["db.internal:5432"]) as sandbox:
        assert _dials(sandbox) == "hello"
        page = sandbox.network.connections()
        (made,) = [each for each in page.connections if each.port]
        assert (made.name, made.allowed, made.rule) == ("db.internal", True, "db.internal:5432")
        assert page.totals["allowed"] == 1 and page.hosts == {"db.internal": 1}

        view = sandbox.network.set([])
        assert (view.net, view.egress, view.rules) == ("restricted", (), ())
        assert _dials(sandbox) == "refused"
        later = sandbox.network.connections(page.next).connections
        assert {each.name for each in later if not each.allowed} == {"db.internal"}
        shown = daemon.ask("GET", f"/v1/sandboxes/{sandbox.id}").json
        assert shown["egress"] == [] and "nothing" in str(shown["enforcement"]["network"])

        for wrong in (None, "none", "host", "", ["*"]):
            with pytest.raises(InvalidInput):
                sandbox.network.set(wrong)  # type: ignore[arg-type]
        # What the operator does not let be granted is refused, and the rules stay.
        with pytest.raises(Refused, match=r"10\.1\.2\.3"):
            sandbox.network.set(["10.1.2.3:5432"])
        assert sandbox.network.get().egress == ()
        assert sandbox.network.set("db.internal:5432,pypi").egress == ("db.internal:5432", "pypi")
        assert _dials(sandbox) == "hello"


_AS_THE_MACHINE_HAS_IT = """
import socket
for family in (socket.AF_INET, socket.AF_UNSPEC):
    found = socket.getaddrinfo("db.internal", 1, family, 1, 0, socket.AI_ADDRCONFIG)
    print(*{each[4][0] for each in found})
"""


@pytest.mark.parametrize(
    "wall", ["linux", pytest.param("oci", marks=pytest.mark.needs("runc")), _GVISOR]
)
def test_names_have_addresses_for_who_wants_those_that_the_machine_has(
    daemon: Daemon, wall: str
) -> None:
    """AI_ADDRCONFIG, which many clients set, of IPv4 alone as well: of 127.0.0.1 it thinks
    nothing."""
    with Sandbox.create(url=daemon.url, backend=wall, net=["db.internal:5432"]) as sandbox:
        found = sandbox.run(["python3", "-c", _AS_THE_MACHINE_HAS_IT], check=True).text.split()
        assert found[0].startswith("198.18.") and found[0] in found[1:]


@pytest.mark.needs("wget")
@pytest.mark.parametrize(
    "wall", ["linux", pytest.param("oci", marks=pytest.mark.needs("runc")), _GVISOR]
)
def test_wget_takes_a_refusal_at_port_80_for_what_it_is(daemon: Daemon, wall: str) -> None:
    """A reset it takes for something to be tried 20 times, which takes minutes."""
    with Sandbox.create(url=daemon.url, backend=wall, net=["db.internal:5432"]) as sandbox:
        done = sandbox.run(["wget", "-O", "/dev/null", "http://db.internal/x"], timeout=100)
        assert done.exit_code == 8 and b"ERROR 403: Forbidden" in done.stderr, done
        (row,) = [each for each in sandbox.network.connections().connections if each.port]
        assert (row.allowed, row.reason) == (False, "port 80 is not among 5432")
        assert sandbox.network.connections().totals["denied"] == 1


def test_by_rest_and_the_command_line_it_is_the_same(daemon: Daemon) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"net": "db.internal:5432, pypi"})
    assert made.status == 201
    box = made.json["id"]
    assert (made.json["net"], made.json["egress"]) == ("restricted", ["db.internal:5432", "pypi"])
    where = f"/v1/sandboxes/{box}/network"
    view = daemon.ask("GET", where).json
    assert view["egress"] == ["db.internal:5432", "pypi"]
    assert {rule["host"] for rule in view["rules"]} >= {"db.internal", "pypi.org"}
    explained = _cli(daemon, "net", "explain", "https://pypi.org/simple", box)
    assert (explained.returncode, explained.stdout) == (0, "pypi.org:443 is allowed by pypi\n")

    assert daemon.ask("PUT", where, {"net": ["npm"]}).json["egress"] == ["npm"]
    explained = _cli(daemon, "net", "explain", "pypi.org:443", box, "--json")
    assert explained.returncode == 1 and json.loads(explained.stdout)["allowed"] is False
    # `learn` opens no port of what is the operator's own.
    view = daemon.ask("PUT", where, {"net": ["db.internal:5432", "learn"]}).json
    assert view["own_hosts"] == ["db.internal"]
    explained = _cli(daemon, "net", "explain", "https://db.internal", box)
    why = "db.internal:443 is refused: port 443 is not among 5432\n"
    assert (explained.returncode, explained.stdout) == (1, why)

    for wrong in ({"net": "none"}, {"net": "host"}, {"net": ["*"]}, {"net": ""}, {}):
        assert daemon.ask("PUT", where, wrong).status == 400

    assert _cli(daemon, "net", "set", box, "db.internal:5432").stdout == "db.internal:5432\n"
    with Sandbox.connect(box, url=daemon.url) as sandbox:
        assert _dials(sandbox) == "hello"
    listed = _cli(daemon, "net", "ls", box).stdout
    assert "db.internal" in listed and "allowed" in listed
    rows = daemon.ask("GET", f"{where}/connections").json["connections"]
    assert [row["name"] for row in rows if row["port"] == 5432] == ["db.internal"]
    assert _cli(daemon, "net", "set", box, "").stdout == "nothing\n"
    assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    assert daemon.ask("GET", where).status in (404, 410)


def test_what_is_read_for_a_secret_is_explained(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "a-token-of-some-length-that-is-used")
    secrets = ["TOKEN=env:TOKEN@pypi.org"]
    with Sandbox.create(url=daemon.url, net=["pypi"], secrets=secrets) as sandbox:
        for host, told in (
            ("pypi.org", "GET /x at pypi.org:443 is allowed by pypi, and read for a secret\n"),
            ("files.pythonhosted.org", "files.pythonhosted.org:443 is allowed by pypi\n"),
        ):
            explained = _cli(daemon, "net", "explain", f"https://{host}/x", sandbox.id)
            assert (explained.returncode, explained.stdout) == (0, told)
        assert sandbox.network.get().terminated == ("pypi.org",)


def test_the_command_line_spells_a_network_of_no_rules(daemon: Daemon) -> None:
    made = _cli(daemon, "create", "--net", "", "--json")
    assert made.returncode == 0, made.stderr
    view = json.loads(made.stdout)
    assert (view["net"], view["egress"]) == ("restricted", [])
    with Sandbox.connect(view["id"], url=daemon.url) as sandbox:
        assert _dials(sandbox) == "refused"
        assert _cli(daemon, "net", "set", sandbox.id, "db.internal:5432").returncode == 0
        assert _dials(sandbox) == "hello"
    assert daemon.ask("DELETE", f"/v1/sandboxes/{view['id']}").status == 204
    params = json.dumps({"command": "true"})
    called = _cli(daemon, "call", "shell.exec.v1", "--net", " ", "--params", params, "--json")
    assert called.returncode == 0, called.stdout + called.stderr
    words = ["run", "--url", daemon.url, "--net", "", "--", "python3", "-c", _DIAL]
    ran = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "refused\n"), ran.stderr


_MANY = """
import socket
for _ in range(600):
    with socket.create_connection(("db.internal", 5432), 60) as sock:
        while sock.recv(100):
            pass
"""


def _denied(daemon: Daemon, sandbox: str) -> list[str]:
    page = daemon.ask("GET", "/v1/audit/records?limit=1000").json
    return [
        reason
        for record in page["records"]
        if record["kind"] == "denial" and record.get("sandbox") == sandbox
        if record["capability"] == "network.connect"
        for reason in record["fields"]["reasons"]
    ]


@pytest.mark.parametrize("wall", ["linux", *[_GVISOR] * gvisor.ALL])
def test_a_receipt_has_what_was_connected_to(daemon: Daemon, wall: str) -> None:
    with Sandbox.create(url=daemon.url, backend=wall, net=["db.internal:5432"]) as sandbox:
        code = _DIAL + "\ntry:\n    socket.getaddrinfo('x.example.com', 1)\nexcept OSError: pass"
        done = sandbox.run(["python3", "-c", code], check=True)
        used = done.usage.network
        assert used and used.hosts == {"db.internal": 1}
        assert (used.allowed, used.received) == (1, 5) and used.denied
        shown = _cli(daemon, "receipt", "show", done.receipt, "--json")
        told = json.loads(shown.stdout)["predicate"]["execution"]["usage"]["network"]
        assert told["hosts"] == {"db.internal": 1} and told["denied"] == used.denied
        assert "connected to db.internal" in _cli(daemon, "receipt", "show", done.receipt).stdout
        assert "x.example.com: no rule allows that name" in _denied(daemon, sandbox.id)
        # Once, however often it is asked for; and what is refused later by itself.
        told = _denied(daemon, sandbox.id)
        sandbox.run(["python3", "-c", code], check=True)
        assert _denied(daemon, sandbox.id) == told
        sandbox.network.set([])
        assert _dials(sandbox) == "refused"
        assert [
            reason.partition(":")[0] for reason in _denied(daemon, sandbox.id)[len(told) :]
        ] == ["db.internal"]
    # Without such a network nothing is said.
    with Sandbox.create(url=daemon.url) as plain:
        assert not plain.run("true", check=True).usage.network


@pytest.mark.parametrize("wall", ["linux", *[_GVISOR] * gvisor.ALL])
def test_many_connections_are_told_by_a_daemon(daemon: Daemon, wall: str) -> None:
    """More than fits into one message of the process that holds its sandboxes."""
    with Sandbox.create(url=daemon.url, backend=wall, net=["db.internal:5432"]) as sandbox:
        sandbox.run(["python3", "-c", _MANY], check=True)
        page = sandbox.network.connections()
    assert page.totals["allowed"] == page.hosts["db.internal"] == 600
    assert len([each for each in page.connections if each.port]) == 600


def test_forks_snapshots_and_the_next_daemon_have_the_rules_that_hold(port: int) -> None:
    host = f'[[egress.host]]\nname = "db.internal"\naddress = "127.0.0.1:{port}"\n'
    config = f'[sandbox]\nnetworks = ["none", "restricted"]\n[egress]\n{{}}\n{host}'
    allowed = 'allow = ["public", "db.internal:5432"]'
    with running(config.format(allowed)) as daemon, Sandbox.create(url=daemon.url, net=[]) as box:
        box.network.set(["db.internal:5432"])
        with box.fork(1)[0] as fork:
            assert fork.network.get().egress == ("db.internal:5432",)
            fork.network.set([])
            assert (_dials(fork), _dials(box)) == ("refused", "hello")
        kept = box.snapshot()
        for rules, egress, said in (
            (None, ("db.internal:5432",), "hello"),
            (["pypi"], ("pypi",), "refused"),
        ):
            with Sandbox.create(url=daemon.url, snapshot=kept.id, net=rules) as again:
                assert (again.network.get().egress, _dials(again)) == (egress, said)
        # The next daemon lets less be granted: what lives goes on, what is made anew may not.
        _again(daemon, config.format('allow = ["pypi"]'))
        with Sandbox.connect(box.id, url=daemon.url) as found:
            assert (found.network.get().egress, _dials(found)) == (("db.internal:5432",), "hello")
            with pytest.raises(Refused, match=r"db\.internal"):
                Sandbox.create(url=daemon.url, snapshot=kept.id)
            with pytest.raises(Refused, match=r"db\.internal"):
                found.fork(1)
            with pytest.raises(Refused, match=r"db\.internal"):
                found.network.set(["db.internal:5432"])
            assert found.network.set(["pypi"]).egress == ("pypi",)
            assert _dials(found) == "refused"
        # What is set is within what is granted now, and not when the sandbox was made.
        _again(daemon, config.format('allow = ["db.internal:5432", "!db.internal:5432"]'))
        with Sandbox.connect(box.id, url=daemon.url) as found:
            found.network.set(["db.internal:5432"])
            assert _dials(found) == "refused"
            with found.fork(1)[0] as fork:
                assert _dials(fork) == "refused"
        _again(daemon, config.format(allowed).replace(', "restricted"', ""))
        with Sandbox.connect(box.id, url=daemon.url) as found:
            with pytest.raises(Refused, match="network restricted"):
                found.network.set(["pypi"])
            with pytest.raises(Refused, match="network restricted"):
                found.fork(1)
            assert found.network.set([]).egress == ()


def _again(daemon: Daemon, config: str) -> None:
    daemon.stop(kill=True)
    daemon.configure(config)
    daemon.start()


def test_as_many_rules_as_there_may_be(daemon: Daemon) -> None:
    rules = [f"{'x' * 40}.n{number}.example.com" for number in range(256)]
    with Sandbox.create(url=daemon.url, net=rules) as sandbox:
        assert len(sandbox.network.get().egress) == 256
        assert sandbox.network.set(rules[:255]).egress == tuple(rules[:255])
        assert len(sandbox.enforcement["network"].detail) < 1000


def test_a_command_that_failed_is_told_what_was_refused() -> None:
    code = "import urllib.request; urllib.request.urlopen('https://files.example.com')"
    words = ["run", "--embedded", "--net", "pypi", "--", "python3", "-c", code]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert "the network refused files.example.com (no rule allows that name);" in told
    assert told.endswith("--net pypi,files.example.com")


def test_a_command_of_a_daemon_that_failed_is_told_where_refusals_are_listed(
    daemon: Daemon,
) -> None:
    code = "import socket; socket.getaddrinfo('x.example.com', 1)"
    told = "refused this sandbox [1-9] names or connections so far; agentd net ls"
    with Sandbox.create(url=daemon.url, net=["pypi"]) as sandbox:
        for words, hint in (
            (["python3", "-c", "raise SystemExit(3)"], None),
            (["python3", "-c", code], rf"{told} {sandbox.id} lists them$"),
            (["true"], None),
        ):
            argv = [sys.executable, "-m", "agentd", "exec", "--url", daemon.url, sandbox.id, "--"]
            done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False)
            if hint is None:
                assert "network" not in done.stderr
            else:
                assert done.returncode == 1 and re.search(hint, done.stderr.strip())


def test_a_name_that_a_rule_forbids_is_told_by_that_rule() -> None:
    """And nobody is advised to allow what no other rule can."""
    code = "import socket; socket.getaddrinfo('admin.example.com', 443)"
    rules = "*.example.com,!admin.example.com"
    words = ["run", "--embedded", "--net", rules, "--", "python3", "-c", code]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.endswith("refused admin.example.com (denied by !admin.example.com)")


def test_a_name_that_was_refused_is_watched_without_a_port(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=["pypi"]) as sandbox:
        sandbox.run(["python3", "-c", "import socket; socket.getaddrinfo('x.example.com', 1)"])
        words = ["net", "watch", sandbox.id, "--url", daemon.url]
        argv = [sys.executable, "-m", "agentd", *words]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout
            line = watching.stdout.readline()
            watching.kill()
    assert line.split(None, 2) == ["refused", "x.example.com", "no rule allows that name\n"]


def test_a_service_that_is_looked_up_is_no_host_to_allow() -> None:
    """As apt does for each mirror: no rule could have it answered."""
    code = "import socket; socket.getaddrinfo('_http._tcp.deb.debian.org', 80)"
    words = ["run", "--embedded", "--net", "debian", "--", "python3", "-c", code]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert told.endswith("refused _http._tcp.deb.debian.org (no rule allows that name)")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("http://localhost:8000", "localhost:8000 is refused: localhost is the sandbox's own"),
        ("a.localhost", "a.localhost:443 is refused: a.localhost is the sandbox's own"),
        ("127.0.0.1:80", "127.0.0.1:80 is refused: 127.0.0.1 is loopback"),
    ],
)
def test_what_no_rule_can_allow_is_explained_as_such(target: str, told: str) -> None:
    words = ["net", "explain", target, "--net", "pypi"]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{told}\n", "")


_TOO_MUCH = (
    "agentd net: 'GET https://a.example/b c' is more than a method and a URL (write it as"
    " 'GET https://pypi.org/simple', %20 for a space)"
)


@pytest.mark.parametrize(
    ("target", "rule", "code", "told"),
    [
        (
            "host.agentd.internal:5432",
            "*.agentd.internal:5432",
            1,
            "host.agentd.internal:5432 is refused: no rule has host.agentd.internal",
        ),
        (
            "host.agentd.internal",
            "learn",
            1,
            "host.agentd.internal:443 is refused: no rule has host.agentd.internal",
        ),
        (
            "host.agentd.internal",
            "learn,!host.agentd.internal",
            1,
            "host.agentd.internal:443 is refused: denied by !host.agentd.internal",
        ),
        (
            "CONNECT https://a.example/x",
            "a.example/**",
            1,
            "CONNECT /x at a.example:443 is refused: nobody is a proxy here",
        ),
        (
            "GET https://a.example/b c",
            "a.example/**",
            2,
            _TOO_MUCH,
        ),
        (
            "[2001:db8::1]:443",
            "[2001:db8::1]:443",
            0,
            "[2001:db8::1]:443 is allowed by [2001:db8::1]:443",
        ),
    ],
)
def test_what_is_explained_is_what_comes_of_it(
    target: str, rule: str, code: int, told: str
) -> None:
    words = ["net", "explain", target, "--net", rule]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (code, f"{told}\n")


@pytest.mark.parametrize("target", ["pypi.org:0", "https://pypi.org:0/simple", "10.1.2.3:0"])
def test_nothing_is_said_of_a_port_that_is_none(target: str) -> None:
    """Port 0 was explained as the usual one, and allowed."""
    words = ["net", "explain", target, "--net", "pypi,10.1.2.3:443"]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    told = f"agentd net: {target!r} has the port 0, which nothing has"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{told} (give a number from 1 to 65535)\n"


def test_rules_are_of_a_sandbox_or_of_the_option() -> None:
    words = ["net", "explain", "pypi.org", "--net", "pypi", "sbx-abcdefghijkl"]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "by which rules, those of --net or the sandbox's?" in done.stderr


@pytest.mark.parametrize(
    ("net", "why"),
    [("host", "reaches all that this machine does"), ("none", "reaches nothing")],
)
def test_a_network_without_rules_explains_nothing(net: str, why: str) -> None:
    words = ["net", "explain", "pypi.org", "--net", net]
    done = subprocess.run(
        [sys.executable, "-m", "agentd", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"'{net}' is no list of rules: with it a sandbox {why} (write rules" in done.stderr


def test_a_name_that_was_refused_has_no_port_in_the_list(daemon: Daemon) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"net": "pypi"}).json["id"]
    with Sandbox.connect(made, url=daemon.url) as sandbox:
        sandbox.run(["getent", "ahosts", "no.such.example"])
        sandbox.run(["bash", "-c", "</dev/tcp/pypi.org/22"])
    rows = [row.split() for row in _cli(daemon, "net", "ls", made).stdout.splitlines()]
    (told,) = {tuple(row[:4]) for row in rows if row[0] == "no.such.example"}
    assert told == ("no.such.example", "-", "dns", "refused")
    # What a name is answered with is no address of anybody's, and would be told as one.
    assert {tuple(row[:4]) for row in rows if "22" in row} == {("pypi.org", "-", "22", "refused")}
    assert daemon.ask("DELETE", f"/v1/sandboxes/{made}").status == 204


def test_a_watch_ends_with_its_sandbox(daemon: Daemon) -> None:
    argv = [sys.executable, "-m", "agentd", "net", "watch", "watched"]
    env = {**os.environ, "AGENTD_URL": daemon.url}
    with Sandbox.create(url=daemon.url, name="watched", net=["pypi"]) as made:
        made.run(["getent", "ahosts", "no.such.example"])
        watch = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        assert watch.stdout is not None
        assert watch.stdout.readline().split()[:2] == ["refused", "no.such.example"]
    assert (watch.communicate()[1], watch.returncode) == ("", 0)
    unknown = _cli(daemon, "net", "watch", "watched")
    assert unknown.returncode == 125 and "there is no sandbox 'watched'" in unknown.stderr


_BREAK_OFF = """
import socket, struct
sock = socket.create_connection(("db.internal", 5432), 20)
sock.recv(1)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sock.close()
"""


def test_the_list_has_the_rule_of_a_connection_that_was_broken_off(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=["db.internal:5432"]) as made:
        made.run(["python3", "-c", _BREAK_OFF], check=True)
        assert "  db.internal:5432 (" in _cli(daemon, "net", "ls", made.id).stdout


def test_connections_of_a_sandbox_without_rules_are_told_to_need_some(daemon: Daemon) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"net": "none"}).json["id"]
    sandbox = Sandbox.connect(made, url=daemon.url)
    with pytest.raises(Refused, match=r'which has no rules .*net="pypi"'):
        sandbox.network.connections()
    sandbox.close()
    listed = _cli(daemon, "net", "ls", made)
    assert listed.returncode == 125
    assert "create it with rules, as --net pypi" in listed.stderr
    assert daemon.ask("DELETE", f"/v1/sandboxes/{made}").status == 204


def test_who_may_change_it_has_a_scope_of_its_own(daemon: Daemon) -> None:
    plain = daemon.key("plain", "run", "create", "read")
    granted = daemon.key("granted", "run", "create", "read", "egress")
    body = {"net": ["pypi"]}
    assert daemon.ask("POST", "/v1/sandboxes", body, key=plain).status == 403
    made = daemon.ask("POST", "/v1/sandboxes", body, key=granted)
    assert made.status == 201
    where = f"/v1/sandboxes/{made.json['id']}/network"
    assert daemon.ask("PUT", where, {"net": ["npm"]}, key=plain).status in (403, 404)
    assert daemon.ask("GET", where, key=plain).status == 404  # another's
    assert daemon.ask("PUT", where, {"net": ["npm"]}, key=granted).status == 200
    assert daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}", key=granted).status == 204
    # One that was made without a network gets none later.
    bare = daemon.ask("POST", "/v1/sandboxes", {}, key=granted).json["id"]
    answer = daemon.ask("PUT", f"/v1/sandboxes/{bare}/network", {"net": ["npm"]}, key=granted)
    assert (answer.status, answer.code) == (403, "refused")
    assert daemon.ask("GET", f"/v1/sandboxes/{bare}/network", key=granted).json["net"] == "none"
    answer = daemon.ask("GET", f"/v1/sandboxes/{bare}/network/connections", key=granted)
    assert (answer.status, answer.code) == (403, "refused")
    assert daemon.ask("DELETE", f"/v1/sandboxes/{bare}", key=granted).status == 204


async def _by_asyncio(daemon: Daemon) -> None:
    async with await AsyncSandbox.create(url=daemon.url, net=["pypi"]) as sandbox:
        assert (await sandbox.network.get()).egress == ("pypi",)
        assert (await sandbox.network.set(["npm"])).egress == ("npm",)
        assert (await sandbox.network.connections()).connections == ()


def test_for_asyncio_it_is_the_same(daemon: Daemon) -> None:
    import asyncio

    asyncio.run(_by_asyncio(daemon))


def test_without_a_daemon_the_caller_is_the_operator() -> None:
    with Sandbox.create(embedded=True, url=None, net=["10.1.2.3:5432"]) as sandbox:
        assert sandbox.network.get().egress == ("10.1.2.3:5432",)
        assert sandbox.network.set(["pypi"]).egress == ("pypi",)
        assert sandbox.network.connections().totals["allowed"] == 0
