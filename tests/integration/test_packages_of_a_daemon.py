"""Packages of a daemon's sandboxes: who may have them, what is written down, whom they are for."""

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.index import NAME, Index, serving
from tests.security.daemons import Answer, Daemon, running, until
from tests.upstream import Upstream

from agentd import AsyncSandbox, Sandbox

_SAY = "import demo; print(demo.VERSION)"
#: It knows nothing of packages.
OLDER = """
decision := {"allow": input.sandbox.net == "none", "reasons": ["no network is had"]}
"""
TEMPLATE = """
[[template]]
name = "py"
packages = ["Demo"]
env = { PYTHONPATH = "/a" }
min = 1
"""
_EGRESS = ("run", "create", "read", "egress")


@pytest.fixture(scope="module")
def index() -> Iterator[Index]:
    with serving() as made:
        made.add("demo", "1.0")
        yield made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def daemon(index: Index, cache: Path) -> Iterator[Daemon]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        with running(_config(index, f'"{NAME}:{index.port}"')) as made:
            yield made


def _config(index: Index, allow: str, networks: str = '"none", "restricted"') -> str:
    bounds = f"[sandbox]\nnetworks = [{networks}]\n[egress]\nallow = [{allow}]\n"
    return bounds + index.config()


def _made(daemon: Daemon, key: str = "", **more: object) -> Answer:
    return daemon.ask("POST", "/v1/sandboxes", {"packages": ["demo"], **more}, key=key)


def test_who_may_have_the_network_of_the_index_gets_them_and_it_is_written_down(
    daemon: Daemon, index: Index
) -> None:
    key = daemon.key("fetcher", *_EGRESS)
    made = _made(daemon, key)
    assert made.status == 201, made.body
    view = made.json
    (locked,) = view["packages"]
    assert (locked["name"], locked["version"]) == ("demo", "1.0") and len(locked["sha256"]) == 64
    assert view["net"] == "none"
    asked = len(index.asked)
    done = daemon.ask(
        "POST", f"/v1/sandboxes/{view['id']}/exec", {"cmd": ["python3", "-c", _SAY]}, key=key
    )
    assert done.json["stdout"] == "1.0\n", done.body
    receipt = daemon.ask("GET", f"/v1/receipts/{done.json['receipt']}").json
    payload = json.loads(base64.b64decode(receipt["payload"]))
    assert f"demo==1.0 sha256:{locked['sha256']}" in json.dumps(payload)
    # Another principal gets the same, and nobody is asked again.
    other = daemon.key("other", *_EGRESS)
    assert _made(daemon, other).json["packages"] == view["packages"]
    with Sandbox.create(url=daemon.url, packages=["demo"]) as sandbox:
        assert sandbox.run(["python3", "-c", _SAY], check=True).text == "1.0\n"
    called = daemon.call("python.exec.v1", {"code": _SAY}, create={"packages": "demo"}, key=key)
    assert called.status == 200 and "1.0" in json.dumps(called.json["value"]), called.body
    assert len(index.asked) == asked, index.asked[asked:]


_ASK = """
import demo, os, urllib.request
request = urllib.request.Request("https://api.test/x", headers={"X-Api-Key": os.environ["TOKEN"]})
print(urllib.request.urlopen(request).status, demo.VERSION)
"""


def test_a_sandbox_that_has_them_uses_its_secrets(
    index: Index, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = Upstream(tmp_path, "api.test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("TOKEN", "a-token-of-some-length-that-is-used")
    api = f"""
[[egress.host]]
name = "api.test"
address = "127.0.0.1:{upstream.port}"
"""
    config = _config(index, f'"{NAME}:{index.port}", "api.test"') + api
    config = config.replace("[egress]\n", f'[egress]\nca_file = "{upstream.ca_file}"\n')
    wanted: dict[str, list[str]] = {"packages": ["demo"], "secrets": ["TOKEN=env:TOKEN@api.test"]}
    try:
        with running(config) as daemon, Sandbox.create(url=daemon.url, **wanted) as sandbox:
            done = sandbox.run(["python3", "-c", _ASK])
            assert (done.stdout, done.stderr) == (b"200 1.0\n", b"")
    finally:
        upstream.close()
    assert upstream.asked[0]["headers"]["X-Api-Key"] == "a-token-of-some-length-that-is-used"


def test_asyncio_has_them_too(daemon: Daemon) -> None:
    async def said() -> str:
        async with await AsyncSandbox.create(url=daemon.url, packages="demo") as sandbox:
            return (await sandbox.run(["python3", "-c", _SAY], check=True)).text

    assert asyncio.run(said()) == "1.0\n"


def test_who_may_not_have_the_network_gets_none(daemon: Daemon) -> None:
    refused = _made(daemon, daemon.key("ordinary", "run", "create", "read"))
    assert refused.status == 403 and "egress" in refused.json["message"]
    called = daemon.call(
        "python.exec.v1", {"code": _SAY}, create={"packages": "demo"},
        key=daemon.key("ordinary", "run", "create", "read"),
    )  # fmt: skip
    assert called.status == 403, called.body


def test_a_fork_and_a_snapshot_are_for_who_may_have_the_network(daemon: Daemon) -> None:
    key = daemon.key("fetcher", *_EGRESS, "snapshot")
    box = _made(daemon, key).json["id"]

    def has_them(id_: str) -> bool:
        asked = {"cmd": ["python3", "-c", _SAY]}
        done = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", asked, key=key)
        return bool(done.json["stdout"] == "1.0\n")

    forked = daemon.ask("POST", f"/v1/sandboxes/{box}/fork", {"count": 1}, key=key)
    assert [has_them(copy["id"]) for copy in forked.json] == [True], forked.body
    kept = daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot", key=key).json["id"]
    again = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept}, key=key)
    assert has_them(again.json["id"]), again.body
    assert again.json["packages"][0]["name"] == "demo"
    # The same principal, by a key with fewer scopes.
    less = daemon.ask(
        "POST", "/v1/keys",
        {"name": "less", "scopes": ["create", "snapshot"], "principal": "fetcher"},
    ).json["secret"]  # fmt: skip
    for path, asked in (
        ("/v1/sandboxes", {"snapshot": kept}),
        (f"/v1/sandboxes/{box}/fork", {"count": 1}),
    ):
        refused = daemon.ask("POST", path, asked, key=less)
        assert refused.status == 403, refused.body
        assert "packages need a network to be fetched" in refused.json["message"]


def test_what_is_malformed_is_told_by_every_door(daemon: Daemon) -> None:
    for packages in (["./demo"], "demo @ http://a.example/", [""], ["demo", "x y"], [7]):
        refused = daemon.ask("POST", "/v1/sandboxes", {"packages": packages})
        assert refused.status == 400, (packages, refused.body)
    absent = _made(daemon, packages=["absent"])
    assert absent.status == 400 and "no wheel of absent" in absent.json["message"]


def test_the_command_line_has_a_daemons(daemon: Daemon) -> None:
    done = daemon.cli("run", "--with", "demo", "--", "python3", "-c", _SAY)
    assert (done.returncode, done.stdout) == (0, b"1.0\n"), done.stderr
    made = daemon.cli("create", "--with", "demo")
    assert made.returncode == 0, made.stderr
    shown = daemon.cli("inspect", made.stdout.decode().strip())
    assert b"demo==1.0" in shown.stdout, shown.stdout


def test_they_outlive_the_daemon_that_made_them(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with running(_config(index, '"private"')) as daemon:
        id_ = daemon.sandbox(packages=["demo"])
        daemon.stop(kill=True)
        daemon.start()
        done = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["python3", "-c", _SAY]})
        assert done.json["stdout"] == "1.0\n", done.body
        assert daemon.ask("GET", f"/v1/sandboxes/{id_}").json["packages"][0]["name"] == "demo"


def test_a_template_has_them_ready(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with running(_config(index, '"private"') + TEMPLATE) as daemon:
        until(lambda: bool(daemon.ask("GET", "/v1/stats").json["pool"].get("template/py")))
        for env, behind in ({}, "/a"), ({"PYTHONPATH": "/b"}, "/b"):
            with Sandbox.create(url=daemon.url, template="py", env=env) as sandbox:
                assert sandbox.run(["python3", "-c", _SAY], check=True).text == "1.0\n"
                path = sandbox.run("echo $PYTHONPATH", check=True).text.strip()
                assert path == f"/opt/agentd/packages:{behind}"
                assert sandbox.enforcement["packages"].detail.startswith("demo==1.0")
        same = _made(daemon, template="py", packages="demo")
        assert same.status == 201, same.body
        other = _made(daemon, template="py", packages=["absent"])
        assert other.status == 400 and "has packages demo, and not absent" in other.json["message"]


@pytest.mark.parametrize(
    ("allow", "networks", "policy", "because"),
    [
        ('"pypi"', '"none", "restricted"', "", "egress.allow"),
        ('"public", "private"', '"none"', "", "network restricted is not allowed here"),
        ('"public", "private"', '"none", "restricted"', OLDER, "no network is had"),
    ],
)
def test_what_allows_no_such_network_allows_no_packages(
    allow: str, networks: str, policy: str, because: str, index: Index, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = _config(index, allow, networks)
    asked = len(index.asked)
    with running(config, policy=policy) as strict:
        refused = _made(strict)
        assert refused.status == 403, refused.body
        told = " ".join(refused.json.values())
        assert because in told, told
        assert policy or refused.json["message"].startswith("packages need a network")
    assert len(index.asked) == asked
