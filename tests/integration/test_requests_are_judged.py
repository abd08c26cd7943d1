"""Rules of methods and paths: what a sandbox's programs ask is judged request by request."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.read_server import EchoServer, serving
from tests.security.daemons import Daemon, running
from tests.unit.capability.fetch.authority import Authority

from agentd import Refused, Sandbox

HOST = "api.example.com"
RULES = [f"GET|HEAD|POST {HOST}/v1/**", "read plain.example.com:80/v1/*"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    folder.chmod(0o755)
    return Authority(folder, [HOST, "other.example.com"], [])


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[EchoServer]:
    with serving(authority.server) as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[EchoServer]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def daemon(server: EchoServer, plain: EchoServer, authority: Authority) -> Iterator[Daemon]:
    hosts = {HOST: server, "other.example.com": server, "plain.example.com": plain}
    config = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["public", "{HOST}", "other.example.com", "plain.example.com"]
ca_file = "{authority.ca}"
"""
    for name, each in hosts.items():
        config += f'[[egress.host]]\nname = "{name}"\naddress = "127.0.0.1:{each.server_port}"\n'
    with running(config) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=daemon.url, net=RULES) as made:
        yield made


def curl(sandbox: Sandbox, *words: str) -> tuple[int, str]:
    """The status and the body; the status is 0 where there was no answer."""
    argv = ["curl", "-sS", "-m", "60", "-o", "/tmp/body", "-w", "%{http_code}", *words]
    done = sandbox.run(["sh", "-c", '"$@" && echo && cat /tmp/body', "sh", *argv])
    status, _, body = done.stdout.decode().partition("\n")
    return int(status or 0), body if done.exit_code == 0 else done.stderr.decode()


@pytest.mark.needs("curl")
def test_curl_is_answered_what_a_rule_allows_and_told_what_none_does(sandbox: Sandbox) -> None:
    status, body = curl(sandbox, f"https://{HOST}/v1/models?a=b")
    assert (status, json.loads(body)["line"]) == (200, "GET /v1/models?a=b HTTP/1.1")
    status, body = curl(sandbox, f"https://{HOST}/v2/models")
    assert status == 403
    error = json.loads(body)["error"]
    assert (error["code"], error["host"], error["path"]) == ("denied", HOST, "/v2/models")
    assert error["remediation"] == f"allow it with --net 'GET {HOST}/v2/models'"
    assert curl(sandbox, "-X", "DELETE", f"https://{HOST}/v1/models")[0] == 403


@pytest.mark.parametrize("how", ["old", "until"])
def test_a_program_asks_again_where_the_host_ends_each_connection(
    sandbox: Sandbox, how: str
) -> None:
    code = f"""if 1:
        import http.client
        asked = http.client.HTTPSConnection("{HOST}", timeout=60)
        for _ in range(2):
            asked.request("GET", "/v1/{how}")
            print(asked.getresponse().read().decode())
    """
    done = sandbox.run(["python3", "-c", code])
    assert done.stdout.decode() == f"{how}\n" * 2, done.stderr.decode()


@pytest.mark.needs("curl")
def test_what_no_rule_mends_is_told_with_what_does(sandbox: Sandbox) -> None:
    status, body = curl(sandbox, f"https://{HOST}/v1/none")
    error = json.loads(body)["error"]
    told = error["message"].rpartition(": ")[2]
    assert (status, told) == (502, "the host ended the connection before it answered")
    assert error["remediation"].startswith("ask again")
    status, body = curl(sandbox, "-H", "Host: other.internal", f"https://{HOST}/v1/models")
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (403, "wrong_host")
    assert error["remediation"].startswith("ask for the host that was dialled")


@pytest.mark.needs("curl")
@pytest.mark.parametrize(
    "wall",
    [
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=[pytest.mark.needs("runsc"), pytest.mark.timeout(900)]),
    ],
)
def test_containers_trust_an_authority_of_their_own_and_use_secrets(
    daemon: Daemon, server: EchoServer, wall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "a-key-that-never-enters-it")
    made = {"url": daemon.url, "backend": wall, "secrets": [f"API_TOKEN=env:API_TOKEN@{HOST}"]}
    with Sandbox.create(net=RULES, **made) as sandbox:
        script = f'curl -sS -m 60 -o /dev/null -H "X-Api-Key: $API_TOKEN" https://{HOST}/v1/keys'
        assert sandbox.run(["sh", "-c", script]).stderr == b""
        (asked,) = [headers for line, headers, _ in server.seen if "/v1/keys" in line]
        assert dict(asked)["X-Api-Key"] == "a-key-that-never-enters-it"
        server.seen.clear()
        # Whoever looks at the system's file instead trusts the same.
        script = f"env -i curl -sS -m 60 https://{HOST}/v2/keys"
        assert '"denied"' in sandbox.run(["sh", "-c", script], check=True).text
        assert not server.seen
        certificates = sandbox.run("cat /etc/ssl/certs/ca-certificates.crt", check=True).text
        with Sandbox.create(net=RULES, **made) as other:
            told = other.run("cat /etc/ssl/certs/ca-certificates.crt", check=True).text
        own = set(certificates.split("-----BEGIN")) - set(told.split("-----BEGIN"))
        assert len(own) == 1  # a stolen one is of no use in another


_URLLIB = """
import json, urllib.error, urllib.request
print(json.loads(urllib.request.urlopen("https://api.example.com/v1/x").read())["line"])
try:
    urllib.request.urlopen("https://api.example.com/v2/x")
except urllib.error.HTTPError as error:
    print(error.code, json.loads(error.read())["error"]["code"], error.headers["Agentd-Refused"])
"""
_FETCH = """
fetch("https://api.example.com/v1/x").then(async (a) => console.log((await a.json()).line))
  .then(() => fetch("https://api.example.com/v2/x"))
  .then(async (a) => console.log(a.status, (await a.json()).error.code))
"""


def test_python_needs_nothing_else(sandbox: Sandbox) -> None:
    done = sandbox.run(["python3", "-c", _URLLIB], check=True)
    assert done.stdout.decode() == "GET /v1/x HTTP/1.1\n403 denied denied\n"


_FULL = """
import urllib.error, urllib.request
for _ in range(20):
    try:
        urllib.request.urlopen("https://api.example.com/v1/full", data=b"a=b")
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_what_a_host_says_that_takes_no_more_is_had(sandbox: Sandbox) -> None:
    """It answers before it has the body, and closes, which resets: as servers do with 413."""
    done = sandbox.run(["python3", "-c", _FULL])
    assert (done.text, done.stderr) == ("413\n" * 20, b"")


@pytest.mark.needs("node")
def test_node_needs_nothing_else(sandbox: Sandbox) -> None:
    done = sandbox.run(["node", "-e", _FETCH], check=True)
    assert done.stdout.decode() == "GET /v1/x HTTP/1.1\n403 denied\n"


@pytest.mark.needs("wget")
def test_wget_which_knows_no_variable_needs_nothing_else(sandbox: Sandbox) -> None:
    done = sandbox.run(["wget", "-q", "-O-", "--tries=1", f"https://{HOST}/v1/x"], check=True)
    assert json.loads(done.stdout)["line"] == "GET /v1/x HTTP/1.1"


@pytest.mark.needs("git")
def test_git_trusts_it_and_says_what_was_refused(sandbox: Sandbox) -> None:
    done = sandbox.run(["git", "ls-remote", f"https://{HOST}/v2/repository"])
    assert b"The requested URL returned error: 403" in done.stderr


@pytest.mark.needs("curl")
def test_a_large_answer_comes_whole_to_a_slow_reader(sandbox: Sandbox) -> None:
    size = 48 << 20
    script = f"curl -sS https://{HOST}/v1/big/{size} | (sleep 1; md5sum; true) && echo"
    done = sandbox.run(["sh", "-c", script], check=True)
    assert done.stdout.split()[0].decode() == hashlib.md5(b"x" * size).hexdigest()  # noqa: S324


@pytest.mark.needs("curl")
def test_plain_http_is_judged_as_well(sandbox: Sandbox) -> None:
    status, body = curl(sandbox, "http://plain.example.com/v1/x")
    assert (status, json.loads(body)["line"]) == (200, "GET /v1/x HTTP/1.1")
    assert curl(sandbox, "http://plain.example.com/v2/x")[0] == 403
    assert curl(sandbox, "-H", "Host: other.example.com", "http://plain.example.com/v1/x")[0] == 403


@pytest.mark.needs("curl")
def test_an_offer_of_http_2_is_not_taken(sandbox: Sandbox, plain: EchoServer) -> None:
    """As Java's client makes one, too: whoever takes none answers as ever."""
    url = "http://plain.example.com/v1/x"
    words = ["-sS", "--http2", "-w", "%{http_version} %{http_code}\n"]
    done = sandbox.run(["curl", *words, *["-o", "/dev/null", url] * 2], check=True)
    assert done.text == "1.1 200\n1.1 200\n"
    for _, fields, _ in plain.seen[-2:]:
        told = {name.lower() for name, _ in fields}
        assert not told & {"upgrade", "http2-settings", "connection"}, fields


@pytest.mark.needs("curl")
def test_what_is_told_to_allow_a_request_can_be_asked_for_at_any_port(server: EchoServer) -> None:
    """Of the machine's own name, whose rules all have a port, and of a path that has a comma."""
    where = f"host.agentd.internal:{server.server_port}"
    asked = f"http://{where}/v2/a,b"
    with Sandbox.create(net=[f"GET {where}/v1"]) as sandbox:
        told = json.loads(curl(sandbox, asked)[1])["error"]["remediation"]
    assert told == f"allow it with --net 'GET {where}/v2/a*b'"
    words = [sys.executable, "-m", "agentd", "run", "--embedded", "--net"]
    argv = [*words, f"GET {where}/v1", "--", "curl", "-sf", asked]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert f"--net 'GET {where}/v1,GET {where}/v2/a*b'" in done.stderr
    argv = [*words, "pypi", "--", "curl", "-sf", asked]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)
    assert "--net pypi,host.agentd.internal:PORT" in done.stderr
    explained = ["net", "explain", f"GET {asked}", "--net", f"GET {where}/v2/a*b"]
    assert subprocess.run([sys.executable, "-m", "agentd", *explained], check=False).returncode == 0


@pytest.mark.needs("curl")
def test_a_host_hears_the_same_with_and_without_it(
    daemon: Daemon, sandbox: Sandbox, server: EchoServer, authority: Authority
) -> None:
    words = ("-A", "a/1", "-H", "X-A: b  c", "--data-binary", "a=1&b=%2F", f"https://{HOST}/v1/x?q")
    with Sandbox.create(url=daemon.url, net=[HOST]) as unread:
        with open(authority.ca, "rb") as file:
            unread.files.write("/workspace/ca.pem", file.read())
        before = len(server.seen)
        assert curl(unread, "--http1.1", "--cacert", "/workspace/ca.pem", *words)[0] == 200
        assert curl(sandbox, "--http1.1", *words)[0] == 200
    one, other = server.seen[before:]
    assert one == other


@pytest.mark.needs("curl")
def test_each_request_is_told_and_what_was_refused_is_a_denial(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=RULES) as sandbox:
        assert curl(sandbox, f"https://{HOST}/v1/told?secret=1")[0] == 200
        assert curl(sandbox, "-X", "DELETE", f"https://{HOST}/v1/told")[0] == 403
        done = sandbox.run("true")
        told_of = sandbox.network.connections().connections
    told = [(e.method, e.path, e.status, e.allowed, e.rule) for e in told_of if e.method]
    assert told == [
        ("GET", "/v1/told", 200, True, RULES[0]),
        ("DELETE", "/v1/told", 403, False, ""),
    ]
    used = done.usage.network
    assert (used.allowed, used.denied, used.hosts) == (2, 1, {HOST: 2})
    page = daemon.ask("GET", "/v1/audit/records?limit=1000").json
    denials = [
        reason
        for record in page["records"]
        if record["kind"] == "denial" and record.get("sandbox") == sandbox.id
        for reason in record["fields"]["reasons"]
    ]
    assert denials == [f"{HOST}:443: no rule allows DELETE /v1/told"]


@pytest.mark.needs("curl")
def test_a_fork_and_a_snapshot_trust_an_authority_of_their_own(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=RULES) as first:
        bundle = first.run("cat $SSL_CERT_FILE", check=True).stdout
        (fork,) = first.fork()
        snapshot = first.snapshot()
        with fork, Sandbox.create(url=daemon.url, snapshot=snapshot) as restored:
            found = [bundle]
            for each in (fork, restored):
                found.append(each.run("cat $SSL_CERT_FILE", check=True).stdout)
                assert curl(each, f"https://{HOST}/v1/x")[0] == 200
        assert len(set(found)) == 3
        assert {each.count(b"BEGIN") for each in found} == {bundle.count(b"BEGIN")}


@pytest.mark.needs("curl")
def test_rules_that_change_are_about_hosts_that_it_was_made_for(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=RULES) as sandbox:
        sandbox.network.set([f"GET {HOST}/v2/*"])
        assert curl(sandbox, f"https://{HOST}/v1/x")[0] == 403
        assert curl(sandbox, f"https://{HOST}/v2/x")[0] == 200
        with pytest.raises(Refused, match=r"requests to other\.example\.com cannot be judged"):
            sandbox.network.set(["GET other.example.com/v2/*"])
        assert curl(sandbox, f"https://{HOST}/v2/x")[0] == 200
    with (
        Sandbox.create(url=daemon.url, net=[HOST]) as unread,
        pytest.raises(Refused, match="it has no authority"),
    ):
        unread.network.set([f"GET {HOST}/v2/*"])


@pytest.mark.needs("curl")
@pytest.mark.parametrize("wanted", [{"user": "root", "writable": True}, {"user": "root"}])
def test_root_of_a_sandbox_trusts_it_too(daemon: Daemon, wanted: dict[str, Any]) -> None:
    with Sandbox.create(url=daemon.url, net=RULES, **wanted) as sandbox:
        assert curl(sandbox, f"https://{HOST}/v1/x")[0] == 200


def test_a_requests_own_variable_is_left_alone(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=RULES, env={"SSL_CERT_FILE": "/own"}) as sandbox:
        said = sandbox.run("echo $SSL_CERT_FILE $CURL_CA_BUNDLE").stdout.decode().split()
        assert said == ["/own", "/.agentd/certificates/bundle.pem"]
    with Sandbox.create(url=daemon.url, net=[HOST]) as unread:
        assert unread.run("env | grep -c /.agentd; ls /.agentd/certificates").stdout == b"0\n"


def agentd(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "agentd", *words, "--url", daemon.url]
    return subprocess.run(argv, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.needs("curl")
def test_the_command_line_says_what_was_refused_and_which_rule_allows_it(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, net=RULES) as sandbox:
        curl(sandbox, "-X", "DELETE", f"https://{HOST}/v1/x")
        listed = agentd(daemon, "net", "ls", sandbox.id).stdout
        assert f"DELETE {HOST}/v1/x" in listed and "refused 403" in listed
        explained = agentd(daemon, "net", "explain", f"DELETE https://{HOST}/v1/x", sandbox.id)
        assert "refused: no rule allows DELETE /v1/x" in explained.stdout
        assert explained.returncode == 1
    argv = ["curl", "-sf", "-X", "PUT", f"https://{HOST}/v1/x"]
    words = [sys.executable, "-m", "agentd", "run", "--url", daemon.url, "--net", RULES[0], "--"]
    done = subprocess.run([*words, *argv], capture_output=True, text=True, timeout=240, check=False)
    assert f"the network refused PUT {HOST}/v1/x (no rule allows PUT /v1/x)" in done.stderr
    assert f"--net '{RULES[0]},PUT {HOST}/v1/x'" in done.stderr
