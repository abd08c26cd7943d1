"""Doors of other packages, installed beside agentd and opened by a daemon's configuration."""

import http.client
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, running

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/agentd-door-hooks"
PAGE = (EXAMPLE.parents[1] / "docs/doors.md").read_text()
Install = Callable[..., None]
#: It has no caller to pass, and makes itself one of what it was given.
LIAR = """
import agentd_door_hooks
from agentd.ingest.web.door import Mount
from agentd.ingest.web.routes import Routes
from agentd.model.answer import Answer
from agentd.model.api import SandboxBody
from agentd.model.credential import Credential
from agentd.model.principal import local

class Liar(agentd_door_hooks.Hooks):
    async def run(self, exchange):
        service = await exchange.authenticate()
        how = exchange.path["how"]
        if how == "scopes":
            service.caller.scopes = frozenset({"admin"})
        if how == "caller":
            service.caller = local("root")
        if how == "argument":
            service.sandboxes.create(local("root"), SandboxBody())
        if how == "made":
            self.gatekeeper.authenticate(local("root"))
        if how == "nobody":
            service = self.gatekeeper.authenticate(Credential())
        view = await self.web.threads.waits.run(service.sandboxes.create, SandboxBody())
        await exchange.answer(Answer(200, str(view).encode()))

def mount(web, gatekeeper):
    door = Liar(web, gatekeeper)
    routes = Routes(door)
    routes.add("/liar/{how}", {"POST": door.run})
    return Mount(door, routes, ("/liar",))
"""
GREEDY = """
import agentd_door_hooks
from agentd.ingest.web.door import Mount

def mount(*given):
    made = agentd_door_hooks.mount(*given)
    return Mount(made.door, made.application, ("/v1/hooks",))
"""
BROKEN = {
    "raises": ("raise RuntimeError('no such luck')", "RuntimeError: no such luck"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "empty": ("pass", "has no attribute 'mount'"),
    "odd": ("def mount(web, gatekeeper):\n    return 7", "it returned int, not a Mount"),
    "greedy": (GREEDY, "the doors 'rest' and 'greedy' both answer /v1/hooks"),
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """A distribution with one door, on the path of every Python that is started from here on."""
    before = os.environ.get("PYTHONPATH")
    paths = [str(tmp_path), str(EXAMPLE), *([before] if before else [])]
    monkeypatch.setenv("PYTHONPATH", ":".join(paths))

    def made(name: str, source: str = "") -> None:
        module = f"agentd_door_{name}"
        if source:
            (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: door-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[agentd.ingests]\n{name} = {module}:mount\n")

    return made


@pytest.fixture
def daemon(install: Install, tmp_path: Path) -> Iterator[Daemon]:
    """REST on its usual socket, with the example's door on the one it is asked by, and that door
    alone on a third."""
    install("hooks")
    install("count", re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)[0])
    install("liar", LIAR)
    listen = '[[listen]]\naddress = "unix:{}"\nserves = [{}]\n'
    both, alone = tmp_path / "both", tmp_path / "alone"
    more = listen.format(both, '"rest", "hooks", "liar", "count"') + listen.format(alone, '"hooks"')
    with running(more) as made:
        made.socket = str(both)
        yield made


def at(path: str, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status, response.read()


def test_the_example_runs_what_a_webhook_sends(daemon: Daemon) -> None:
    id_ = daemon.sandbox()
    script = b'#!/bin/sh\nread line; echo "got $line"; [ "$line" != bad ]\n'
    workspace = daemon.ask("GET", f"/v1/sandboxes/{id_}").json["workspace"]
    path = f"/v1/sandboxes/{id_}/files?path={workspace}/hook&mode=755"
    assert daemon.ask("PUT", path, script).status == 200

    done = daemon.ask("POST", f"/hooks/{id_}", b"a push")
    assert (done.status, done.body) == (200, b"got a push\n")
    assert done.headers["x-request-id"].startswith("req-")
    failed = daemon.ask("POST", f"/hooks/{id_}", b"bad")
    assert (failed.status, failed.body) == (502, b"got bad\n")

    # Its errors are its own, REST's are REST's, and what nobody claims is the first one's.
    gone = daemon.ask("POST", "/hooks/sbx-none", b"")
    assert gone.status == 404, gone.body
    assert gone.body.startswith(b"code: not_found\nmessage: there is no sandbox"), gone.body
    wrong = daemon.ask("GET", f"/hooks/{id_}")
    assert wrong.status == 405 and wrong.headers["allow"] == "POST"
    assert wrong.headers["content-type"].startswith("text/plain")
    large = daemon.ask("POST", f"/hooks/{id_}", b"x" * ((1 << 20) + 1))
    assert large.status == 413 and b"message: the body is larger" in large.body, large.body
    assert daemon.ask("GET", "/v1/sandboxes/sbx-none").code == "not_found"
    assert daemon.ask("GET", "/elsewhere").code == "not_found"

    # A caller without the scope has none at another door either.
    reader = daemon.key("eve", "read")
    refused = daemon.ask("POST", f"/hooks/{id_}", b"a push", key=reader)
    assert refused.status == 403 and b"lacks the scope 'run'" in refused.body
    stranger = daemon.ask("POST", f"/hooks/{id_}", b"a push", key="agd_nobody")
    assert stranger.status == 401 and b"\n" in stranger.body


def test_a_listener_has_the_doors_that_it_names(daemon: Daemon) -> None:
    alone = daemon.socket.replace("both", "alone")
    status, body = at(alone, "GET", "/v1/version")
    assert status == 404 and b"POST /hooks/SANDBOX is all there is" in body
    id_ = daemon.sandbox()
    status, body = at(alone, "POST", f"/hooks/{id_}", b"x")
    assert status == 502, body  # there is no ./hook in it
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(alone)
        client.sendall(b"no HTTP at all\r\n\r\n")
        said = b"".join(iter(lambda: client.recv(4096), b""))
    assert b"400" in said.split(b"\r\n")[0] and b"this is no HTTP request" in said
    assert not said.rstrip().endswith(b"}"), "it has this door's form, not REST's"


def test_the_door_of_the_page_counts(daemon: Daemon) -> None:
    assert daemon.ask("GET", "/count").body == b"0\n"
    daemon.sandbox()
    assert daemon.ask("GET", "/count").body == b"1\n"
    assert daemon.ask("GET", "/count", key="agd_none").status == 401


def test_a_door_asks_as_whoever_asks_it(daemon: Daemon) -> None:
    """The gatekeeper alone gives out a service, and it is bound to its caller."""
    reader = daemon.key("eve", "read")
    ways = {"scopes": 500, "caller": 500, "argument": 500, "made": 500, "nobody": 401, "asks": 403}
    for how, status in ways.items():
        refused = daemon.ask("POST", f"/liar/{how}", b"", key=reader)
        assert refused.status == status, (how, refused.body)
    assert daemon.ask("GET", "/v1/sandboxes").json["sandboxes"] == []
    made = daemon.ask("POST", "/liar/asks", b"")
    assert made.status == 200 and b"principal='uid:" in made.body, made.body


@pytest.mark.parametrize("name", BROKEN)
def test_a_door_that_cannot_be_opened_names_its_package(
    install: Install, tmp_path: Path, name: str
) -> None:
    source, why = BROKEN[name]
    install(name, source)
    file = tmp_path / "agentd.toml"
    listen = f'[[listen]]\naddress = "unix:{tmp_path}/s"\n'
    file.write_text(f'{listen}serves = ["rest", "{name}"]\n')
    ran = agentd("serve", "--config", str(file), "--state", str(tmp_path / "state"))
    assert ran.returncode == 2 and why in ran.stderr, ran.stderr
    if name != "greedy":
        assert f"the door '{name}' of the package door-{name} cannot be" in ran.stderr
    assert not (tmp_path / "s").exists()


def test_a_name_that_no_door_has_is_told_with_those_there_are(
    install: Install, tmp_path: Path
) -> None:
    install("raises", BROKEN["raises"][0])  # it is not loaded to be named
    file = tmp_path / "agentd.toml"
    file.write_text(f'[[listen]]\naddress = "unix:{tmp_path}/s"\nserves = ["rset"]\n')
    for words in (["config", "check", str(file)], ["serve", "--config", str(file)]):
        ran = agentd(*words)
        said = ran.stdout + ran.stderr
        assert ran.returncode != 0 and "there is no door 'rset'" in said, said
        assert "there are: raises, rest" in said and "listen[0].serves" in said
    file.write_text(f'[[listen]]\naddress = "unix:{tmp_path}/s"\nserves = ["raises"]\n')
    assert agentd("config", "check", str(file)).returncode == 0


def test_two_packages_with_one_name_are_refused(install: Install, tmp_path: Path) -> None:
    install("odd", BROKEN["odd"][0])
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[agentd.ingests]\nodd = elsewhere:mount\n")
    file = tmp_path / "agentd.toml"
    file.write_text(f'[[listen]]\naddress = "unix:{tmp_path}/s"\nserves = ["odd"]\n')
    ran = agentd("config", "check", str(file))
    said = ran.stdout + ran.stderr
    assert ran.returncode != 0 and "door-odd and other both have a door 'odd'" in said, said


def test_a_door_that_is_not_named_is_not_loaded(install: Install, tmp_path: Path) -> None:
    install("raises", f"open({str(tmp_path / 'loaded')!r}, 'w')")
    with running() as made:
        assert made.ask("GET", "/v1/version").status == 200
    assert not (tmp_path / "loaded").exists()


def agentd(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agentd", *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
