"""Rules that record, replay and ask, of templates and of snapshots, and beside each other."""

from collections.abc import Iterator

import pytest
from tests.integration.read_server import serving
from tests.integration.test_asked_connections import _asked, _decide, _pending
from tests.integration.test_templates import from_pool
from tests.security.daemons import Daemon, Later, running

from agentd import Forbidden, Sandbox
from agentd.model.cassette import RecordedExchange, joined, line, parse

pytestmark = [pytest.mark.needs("curl"), pytest.mark.timeout(900)]
HOST, OTHER = "api.example.com", "other.example.com"
URL = f"http://{HOST}/v1/x"
CONFIG = f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["{HOST}", "{OTHER}"]
[[egress.host]]
name = "{HOST}"
address = "127.0.0.1:{{port}}"
[[egress.host]]
name = "{OTHER}"
address = "127.0.0.1:{{port}}"
[[template]]
name = "recorded"
net = "record,{HOST}"
start = ["sh", "-c", "curl -sS {URL}/begun; touch /tmp/up; exec sleep 1000"]
ready = ["test", "-e", "/tmp/up"]
min = 1
[[template]]
name = "replayed"
net = "replay,{HOST}:80"
min = 1
[[template]]
name = "asked"
net = "ask {HOST}:80"
min = 1
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with serving() as server, running(CONFIG.format(port=server.server_port)) as made:
        yield made


@pytest.fixture(scope="module")
def bob(daemon: Daemon) -> str:
    return daemon.key("bob", "approve", "read")


def curl(sandbox: Sandbox, url: str = URL) -> int:
    """The status; 0 where there was no answer."""
    words = ["curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", url]
    return int(sandbox.run(words).text)


def recorded(sandbox: Sandbox) -> list[str]:
    return [each.target for each in parse(sandbox.network.cassette()).exchanges]


def test_a_template_records_from_what_it_begins_on(daemon: Daemon) -> None:
    with from_pool(daemon, "recorded") as sandbox:
        assert curl(sandbox) == 200
        assert recorded(sandbox) == ["/v1/x/begun", "/v1/x"]
    key = daemon.key("plain", "run", "create", "read")
    with pytest.raises(Forbidden, match="egress"):
        Sandbox.create(url=daemon.url, api_key=key, template="recorded")


def test_a_template_replays_for_who_may_reach_nothing(daemon: Daemon) -> None:
    key = daemon.key("plain", "run", "create", "read")
    with Sandbox.create(url=daemon.url, api_key=key, template="replayed") as sandbox:
        assert curl(sandbox) == 403  # there is no cassette yet
        kept = RecordedExchange("GET", HOST, 80, "/v1/x", status=204)
        sandbox.network.play(joined([line(kept)], 0))
        assert curl(sandbox) == 204


def test_a_template_and_a_snapshot_of_its_sandbox_ask(daemon: Daemon, bob: str) -> None:
    with from_pool(daemon, "asked") as sandbox:
        later = Later(lambda: curl(sandbox))
        _decide(daemon, bob, _asked(daemon, bob, sandbox), allow=True)
        assert later.answer() == 200
        snapshot = sandbox.snapshot()
    with Sandbox.create(url=daemon.url, snapshot=snapshot) as restored:
        later = Later(lambda: curl(restored))
        _decide(daemon, bob, _asked(daemon, bob, restored), allow=False)
        assert later.answer() == 0
        assert restored.run("true", check=True).usage.network.asked == 1


def test_what_is_asked_about_is_recorded_once_it_is_allowed(daemon: Daemon, bob: str) -> None:
    net = ["record", f"ask {HOST}:80", f"ask {OTHER}:80"]
    with Sandbox.create(url=daemon.url, net=net) as sandbox:
        later = Later(lambda: curl(sandbox))
        _decide(daemon, bob, _asked(daemon, bob, sandbox), allow=True)
        assert later.answer() == 200
        later = Later(lambda: curl(sandbox, f"http://{OTHER}/v1/y"))
        _decide(daemon, bob, _asked(daemon, bob, sandbox), allow=False)
        assert later.answer() == 0
        assert recorded(sandbox) == ["/v1/x"]
        (fork,) = sandbox.fork()
        with fork:
            later = Later(lambda: curl(fork))
            _decide(daemon, bob, _asked(daemon, bob, fork), allow=True)
            assert later.answer() == 200
            assert recorded(fork) == ["/v1/x"]
        tape = sandbox.network.cassette()
    # Nothing leaves where it is replayed: nobody is asked.
    with Sandbox.create(url=daemon.url, net=["replay", f"ask {HOST}:80"]) as sandbox:
        sandbox.network.play(tape)
        assert curl(sandbox) == 200
        assert not _pending(daemon, bob, sandbox)
        assert sandbox.run("true", check=True).usage.network.asked == 0
