"""What a sandbox may move over its network, asked for and bounded, by every door."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.integration.test_profiles import metric
from tests.security.daemons import WAIT, Daemon, running, until

from agentd import AgentdError, InvalidInput, Refused, Sandbox, Unavailable
from agentd.testing.patience import SLOWER

SIZE = 3 << 20
_BYTES = 'agentd_network_bytes_total{direction="received"}'
_ALLOWED = 'agentd_network_connections_total{verdict="allowed"}'
_FETCH = """
import socket, sys
found = 0
try:
    with socket.create_connection(("host.agentd.internal", int(sys.argv[1])), 60) as sock:
        while part := sock.recv(65536):
            found += len(part)
    print("whole", found)
except OSError as error:
    print(type(error).__name__, found)
"""


def _send(server: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(bytes(SIZE))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the host's, which sends ``SIZE`` bytes to whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_send, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module")
def daemon(port: int) -> Iterator[Daemon]:
    config = f"""
[sandbox]
networks = ["none", "host", "restricted"]
[egress]
allow = ["host.agentd.internal:{port}"]
[limits.max]
net_bytes = "4MiB"
"""
    with running(config) as made:
        yield made


def _fetch(sandbox: Sandbox, port: int) -> tuple[str, int]:
    words = sandbox.run(["python3", "-c", _FETCH, str(port)], check=True).stdout.split()
    return words[0].decode(), int(words[1])


@pytest.mark.parametrize("where", ["embedded", "daemon"])
def test_what_was_moved_in_all_ends_connections(port: int, where: str, daemon: Daemon) -> None:
    place: dict[str, Any] = {"url": daemon.url} if where == "daemon" else {"embedded": True}
    rule = [f"host.agentd.internal:{port}"]
    with Sandbox.create(net=rule, net_bytes="3.5MiB", **place) as sandbox:
        assert _fetch(sandbox, port) == ("whole", SIZE)
        how, found = _fetch(sandbox, port)
        assert how == "ConnectionResetError" and found <= (1 << 19)
        sandbox.network.set(rule)  # gives nothing back
        assert _fetch(sandbox, port) == ("ConnectionResetError", 0)
        page = sandbox.network.connections()
        assert page.totals["received"] <= 3.5 * (1 << 20)
        reasons = {row.reason for row in page.connections if row.port}
        assert reasons == {"", "the sandbox has moved the 3670016 bytes of its net_bytes"}


@pytest.mark.parametrize("backend", ["oci", "gvisor"])
def test_behind_other_walls_too(port: int, backend: str) -> None:
    try:
        sandbox = Sandbox.create(
            embedded=True, backend=backend, net=[f"host.agentd.internal:{port}"], net_bytes="1MiB"
        )
    except Unavailable as error:
        pytest.skip(str(error))
    with sandbox:
        assert sandbox.enforcement["network"].detail.endswith("; 1 MiB in all")
        how, found = _fetch(sandbox, port)
        assert how == "ConnectionResetError" and found <= 1 << 20


def test_nobody_gets_more_than_the_operator_allows(port: int, daemon: Daemon) -> None:
    rule = [f"host.agentd.internal:{port}"]
    with pytest.raises(Refused, match="net_bytes of 5 MiB is more than the 4 MiB allowed"):
        Sandbox.create(url=daemon.url, net=rule, net_bytes="5MiB")
    with Sandbox.create(url=daemon.url, net=rule) as sandbox:  # nothing said is not no bound
        assert _fetch(sandbox, port) == ("whole", SIZE)
        assert _fetch(sandbox, port)[0] == "ConnectionResetError"
    with Sandbox.create(url=daemon.url) as sandbox:
        assert sandbox.run("true").exit_code == 0
    with pytest.raises(Refused, match="cannot be bounded"):
        Sandbox.create(url=daemon.url, net="host")
    with pytest.raises(InvalidInput):
        Sandbox.create(embedded=True, net=["pypi"], net_rate="fast")


@pytest.mark.parametrize("net", ["none", "host"])
@pytest.mark.parametrize("bound", ["net_bytes", "net_rate"])
def test_what_is_no_network_of_rules_has_no_bound(daemon: Daemon, net: str, bound: str) -> None:
    said = f"{bound} bounds a network of rules, and the sandbox has the network {net}"
    asked: dict[str, Any] = {"net": net, bound: "1M"}
    for where in ({"embedded": True}, {"url": daemon.url}):
        with pytest.raises(InvalidInput, match=said):
            Sandbox.create(**where, **asked)
    answer = daemon.ask("POST", "/v1/sandboxes", asked)
    assert answer.status == 400 and said in str(answer.json)
    option = f"--{bound.replace('_', '-')}"
    for words in (["run", "--embedded"], ["create", "--url", daemon.url], ["call", "--embedded"]):
        what = ["shell.exec.v1"] if words[0] == "call" else [] if words[0] == "create" else ["true"]
        ended = subprocess.run(
            [sys.executable, "-m", "agentd", *words, "--net", net, option, "1M", *what],
            check=False,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 2 and said.replace(bound, option) in ended.stderr


def test_a_request_of_a_template_has_the_network_that_the_template_says(port: int) -> None:
    rule = f"host.agentd.internal:{port}"
    templates = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["{rule}"]
[[template]]
name = "open"
net = "{rule}"
"""
    with (
        running(templates) as made,
        Sandbox.create(url=made.url, template="open", net_bytes="1M") as sandbox,
    ):
        assert sandbox.enforcement["network"].detail.endswith("; 1 MiB in all")


def test_the_wall_host_has_the_hosts_network_and_bounds_nothing() -> None:
    for budget in ({"net_rate": "5M"}, {"net_bytes": "1G"}):
        for net, why in (("none", "bounds a network of rules"), (["pypi"], "cannot restrict")):
            with pytest.raises(AgentdError, match=why):
                Sandbox.create(isolation="none", backend="host", net=net, **budget)


_READ = """
import http.client, sys, time
begun, found = time.monotonic(), 0
connection = http.client.HTTPConnection("host.agentd.internal", int(sys.argv[1]), timeout=60)
try:
    connection.request("GET", "/" + sys.argv[2])
    answer = connection.getresponse()
    while part := answer.read1(65536):
        found += len(part)
except (OSError, http.client.HTTPException):
    pass
print(found, time.monotonic() - begun)
"""


# So many connections, whose answers come at the same time.
TOGETHER = 40
_READ_TOGETHER = """
import http.client, sys, threading
found = []
def read():
    connection = http.client.HTTPConnection("host.agentd.internal", int(sys.argv[1]), timeout=60)
    try:
        connection.request("GET", "/" + sys.argv[2] + "?together")
        answer = connection.getresponse()
        while part := answer.read1(65536):
            found.append(len(part))
    except (OSError, http.client.HTTPException):
        pass
threads = [threading.Thread(target=read) for _ in range(int(sys.argv[3]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(found))
"""


class _Serve(BaseHTTPRequestHandler):
    together = threading.Barrier(TOGETHER, timeout=60 * SLOWER)

    def do_GET(self) -> None:
        size = int(self.path.strip("/").partition("?")[0])
        if self.path.endswith("together"):
            self.together.wait()
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(bytes(size))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    """A server of the host's, which sends as many bytes as it is asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Serve) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_template_has_both_and_a_request_may_have_less(port: int) -> None:
    config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["host.agentd.internal:{port}"]
[[template]]
name = "web"
net = "host.agentd.internal:{port}"
net_bytes = "2MiB"
net_rate = "100MiB"
"""

    def detail(sandbox: Sandbox) -> str:
        return sandbox.enforcement["network"].detail.partition("; ")[2]

    with running(config) as daemon:
        with Sandbox.create(url=daemon.url, template="web") as sandbox:
            assert detail(sandbox) == "2 MiB in all; 100 MiB a second"
            assert _fetch(sandbox, port)[0] == "ConnectionResetError"
        with Sandbox.create(url=daemon.url, template="web", net_bytes="1MiB") as sandbox:
            assert detail(sandbox) == "1 MiB in all; 100 MiB a second"
            with (
                sandbox.snapshot() as kept,
                Sandbox.create(url=daemon.url, snapshot=kept.id) as restored,
            ):
                assert detail(restored) == "1 MiB in all; 100 MiB a second"
                assert _fetch(restored, port)[1] <= 1 << 20


def test_what_is_read_on_the_way_counts_too(web: int) -> None:
    """Connections whose requests are judged go through another process than all others."""

    def read(sandbox: Sandbox, size: int) -> tuple[int, float]:
        done = sandbox.run(["python3", "-c", _READ, str(web), str(size)], check=True)
        found, seconds = done.stdout.split()
        return int(found), float(seconds)

    rule = [f"GET host.agentd.internal:{web}/*"]
    with Sandbox.create(embedded=True, net=rule, net_bytes="1MiB") as sandbox:
        assert read(sandbox, 600_000)[0] == 600_000
        assert read(sandbox, SIZE)[0] <= (1 << 20) - 600_000
        assert read(sandbox, 1)[0] == 0
        page = sandbox.network.connections()
        assert 600_000 <= page.totals["received"] + page.totals["sent"] <= 1 << 20
        reason = "the sandbox has moved the 1048576 bytes of its net_bytes"
        assert reason in {row.reason for row in page.connections}
    with Sandbox.create(embedded=True, net=rule, net_rate="200kB") as sandbox:
        # A second's go at once; the rest of it takes two, however busy this machine is.
        found, seconds = read(sandbox, 600_000)
        assert found == 600_000 and seconds >= 1.9


def test_many_at_once_that_are_read_move_no_more_than_one(web: int) -> None:
    rule = [f"GET host.agentd.internal:{web}/*"]
    with Sandbox.create(embedded=True, net=rule, net_bytes="1MiB") as sandbox:
        words = ["python3", "-c", _READ_TOGETHER, str(web), "60000", str(TOGETHER)]
        assert int(sandbox.run(words, check=True).stdout) <= 1 << 20


def test_metrics_tell_of_networks(port: int) -> None:
    config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["host.agentd.internal:{port}"]
"""
    with running(config) as daemon:
        assert metric(daemon, "agentd_network_relay_starts_total") == 0
        with Sandbox.create(url=daemon.url, net=[f"host.agentd.internal:{port}"]) as sandbox:
            assert _fetch(sandbox, port) == ("whole", SIZE)
            sandbox.run(["getent", "hosts", "no.such.example"])
            until(lambda: metric(daemon, "agentd_network_sandboxes") == 1)
            until(lambda: metric(daemon, _BYTES) == SIZE)
            assert metric(daemon, "agentd_network_relay_starts_total") == 1
            assert metric(daemon, _ALLOWED) == 1
            until(lambda: metric(daemon, _ALLOWED.replace("allowed", "denied")) >= 1)
        until(lambda: metric(daemon, "agentd_network_sandboxes") == 0)
        assert metric(daemon, _BYTES) == SIZE  # of who has ended, too
        assert metric(daemon, "agentd_network_relay_deaths_total") == 0


def test_by_the_command_line(port: int) -> None:
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "--json", "--net-bytes", "1MiB"]
    argv += ["--net-rate", "100MiB", "--net", f"host.agentd.internal:{port}"]
    done = subprocess.run(
        [*argv, "--", "python3", "-c", _FETCH, str(port)],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    how, found = json.loads(done.stdout)["stdout"].split()
    assert how == "ConnectionResetError" and int(found) <= 1 << 20
    done = subprocess.run(
        [
            *(word for word in argv if word != "--json"),
            "-v",
            "--",
            "python3",
            "-c",
            _FETCH,
            str(port),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )
    told = done.stderr.splitlines()[-1]
    assert told == (
        f"agentd run: the network refused host.agentd.internal:{port} "
        "(the sandbox has moved the 1048576 bytes of its net_bytes)"
    )
