"""Templates: an image, what sandboxes of it are made with and what they start, by one name."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_profiles import reload
from tests.oci import Images, Layout, busybox, file
from tests.security.daemons import Daemon, running, until

from agentd import AsyncSandbox, Client, InvalidInput, NotFound, NotReady, Sandbox
from agentd.client.cli.main import main
from agentd.daemon import config

pytestmark = pytest.mark.timeout(900)

TEMPLATES = """
[[template]]
name = "web"
disk = "64M"
env = { WORD = "of the template" }
start = ["sh", "-c", "echo begun: $WORD; touch /tmp/up; exec sleep 1000"]
ready = ["test", "-e", "/tmp/up"]
min = 1
[[template]]
name = "cold"
env = { WORD = "of the template" }
start = ["sh", "-c", "echo begun: $WORD; touch /tmp/up; exec sleep 1000"]
ready = ["test", "-e", "/tmp/up"]
user = "root"
max = 0
[[template]]
name = "late"
start = ["sleep", "1000"]
ready = ["sh", "-c", "echo not yet >&2; exit 3"]
ready_timeout = "5s"
max = 0
[[template]]
name = "hangs"
ready = ["sleep", "1000"]
ready_timeout = "1s"
min = 1
[[template]]
name = "dies"
start = ["sh", "-c", "exit 7"]
ready = ["false"]
ready_timeout = "2m"
min = 1
[[template]]
name = "nothing"
start = ["/no/such/program"]
min = 1
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(TEMPLATES) as made:
        yield made


def ready(daemon: Daemon, name: str) -> int:
    """How many of a template stand ready."""
    pools = daemon.ask("GET", "/v1/stats").json["pool"]
    return int(pools.get(f"template/{name}", 0))


def from_pool(daemon: Daemon, name: str) -> Sandbox:
    until(lambda: ready(daemon, name) > 0)
    return Sandbox.create(url=daemon.url, template=name)


def begun(daemon: Daemon, id_: str) -> Any:
    listed = daemon.ask("GET", f"/v1/sandboxes/{id_}/processes").json
    (found,) = [one for one in listed if one["tag"] == "start"]
    return found


def said(daemon: Daemon, id_: str) -> bytes:
    """What was begun in it has written."""
    path = f"/v1/sandboxes/{id_}/processes/start/output?stream=stdout"
    answer = daemon.ask("GET", path)
    assert answer.status == 200, answer
    return answer.body


def test_each_is_listed_by_every_door_without_a_value_of_its_variables(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    until(lambda: ready(daemon, "web") > 0)
    answer = daemon.ask("GET", "/v1/templates")
    assert answer.status == 200, answer.body
    web = answer.json[0]
    assert [one["name"] for one in answer.json][:3] == ["web", "cold", "late"]
    assert (web["limits"], web["env"], web["min"]) == ({"disk": 64 << 20}, ["WORD"], 1)
    assert web["standing"] == 1 and b"of the template" not in answer.body
    assert daemon.ask("GET", "/v1/templates", key=daemon.key("maker", "create")).status == 403
    with Client(daemon.url) as client:
        assert [one.start for one in client.machine.templates()][2] == ("sleep", "1000")
    headings, first, *_ = daemon.cli("template", "ls").stdout.splitlines()
    assert headings.split()[3] == b"NETWORK" and first.split()[:4] == [
        b"web",
        b"default",
        b"-",
        b"none",
    ]
    listed = json.loads(daemon.cli("template", "ls", "--json").stdout)
    (tmp_path / "agentd.toml").write_text(TEMPLATES)
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))
    assert main(["template", "ls", "--embedded", "--json"]) == 0
    alone = json.loads(capfd.readouterr().out)  # nothing stands ready there
    assert alone == [one | {"standing": 0} for one in listed]


@pytest.mark.parametrize("name", ["cold", "web"])
def test_a_sandbox_is_as_its_template_says(daemon: Daemon, name: str) -> None:
    make = from_pool if name == "web" else lambda d, n: Sandbox.create(url=d.url, template=n)
    asked = time.time()
    with make(daemon, name) as box:
        assert box.run("echo $WORD", check=True).text == "of the template\n"
        assert box.enforcement["template"].asked == name
        view = daemon.ask("GET", f"/v1/sandboxes/{box.id}").json
        assert view["template"] == name
        process = begun(daemon, box.id)
        assert (process["tag"], process["state"]) == ("start", "running")
        until(lambda: b"begun: of the template" in said(daemon, box.id))
        if name == "web":
            assert process["started"] < asked or ready(daemon, name)
            assert box.enforcement["disk"].asked == "64M"
        else:
            assert box.run(["id", "-u"], check=True).text == "0\n"
        result = daemon.ask("POST", f"/v1/sandboxes/{box.id}/exec", {"cmd": ["true"]}).json
        assert result["enforcement"]["template"]["asked"] == name
        receipt = daemon.ask("GET", f"/v1/receipts/{result['receipt']}").body
        assert b'"template"' in receipt or b"template" in _payload(receipt)
        daemon.ask("POST", f"/v1/sandboxes/{box.id}/processes/start/signal", {"signal": 9})
        until(lambda: begun(daemon, box.id)["state"] == "ended")


def _payload(receipt: bytes) -> bytes:
    from base64 import b64decode

    return b64decode(json.loads(receipt).get("payload", ""))


def test_variables_and_limits_of_a_request_come_first(daemon: Daemon) -> None:
    """What was begun has the template's, so that it is the same from a pool and without one."""
    with Sandbox.create(
        url=daemon.url, template="web", env={"WORD": "mine", "B": "b"}, disk="32M"
    ) as box:
        assert box.run("echo $WORD $B", check=True).text == "mine b\n"
        assert box.enforcement["disk"].asked == "32M"
        until(lambda: b"begun: of the template" in said(daemon, box.id))


def test_by_the_command_line_and_a_call(daemon: Daemon) -> None:
    done = daemon.cli("run", "--template", "web", "--", "sh", "-c", "echo $WORD")
    assert done.stdout == b"of the template\n", done.stderr
    made = daemon.cli("create", "--template", "web")
    id_ = made.stdout.decode().strip()
    shown = daemon.cli("inspect", id_)
    assert re.search(rb"^template +web$", shown.stdout, re.M), shown
    daemon.ask("DELETE", f"/v1/sandboxes/{id_}")
    create = {"template": "web"}
    called = daemon.call("shell.exec.v1", {"command": "printenv", "args": ["WORD"]}, create=create)
    assert called.json["value"]["stdout"] == "of the template\n", called.body
    done = daemon.cli(
        "call", "--template", "web", "shell.exec.v1", "--params", '{"command": "true"}'
    )
    assert done.returncode == 0, done.stderr


def test_by_each_way_to_make_a_sandbox(daemon: Daemon) -> None:
    ran = {"exec": {"cmd": "echo $WORD"}, "sandbox": {"template": "web"}}
    assert daemon.ask("POST", "/v1/run", ran).json["stdout"] == "of the template\n"
    named = Sandbox.get_or_create("named", url=daemon.url, template="web")
    try:
        assert named.enforcement["template"].asked == "web"
    finally:
        named.kill()

    async def asynchronously() -> str:
        async with await AsyncSandbox.create(url=daemon.url, template="web") as box:
            return (await box.run("echo $WORD")).text

    assert asyncio.run(asynchronously()) == "of the template\n"


def test_the_example_of_the_page_is_a_configuration(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/templates.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    listen = f'[[listen]]\naddress = "unix:{tmp_path}/s"\n'
    (tmp_path / "agentd.toml").write_text(listen + example)
    assert config.check(str(tmp_path / "agentd.toml"), {}) == []


def test_what_a_template_says_is_its_own_to_say(daemon: Daemon) -> None:
    for option in ({"user": "root"}, {"writable": True}, {"net": "host"}, {"image": "other"}):
        # "web" leaves the user to the request.
        name = "cold" if option != {"user": "root"} else "web"
        if name == "web":
            with Sandbox.create(url=daemon.url, template=name, **option) as box:
                assert box.run(["id", "-u"], check=True).text == "0\n"
            continue
        with pytest.raises(InvalidInput, match=f"the template cold has {next(iter(option))}"):
            Sandbox.create(url=daemon.url, template=name, **option)
    with pytest.raises(InvalidInput, match="has net none, and not pypi,npm"):
        Sandbox.create(url=daemon.url, template="cold", net=["pypi", "npm"])
    with pytest.raises(NotFound, match=r"there is no template 'nope'.*web"):
        Sandbox.create(url=daemon.url, template="nope")
    with pytest.raises(InvalidInput, match="text"):
        Sandbox.create(url=daemon.url, template=3)  # type: ignore[arg-type]
    with Sandbox.create(url=daemon.url) as box:
        kept = box.snapshot()
        with pytest.raises(InvalidInput, match="of no template"):
            Sandbox.create(url=daemon.url, snapshot=kept, template="web")


@pytest.mark.parametrize(
    ("name", "message", "cause"),
    [
        ("late", "was not ready within 5s", "exited with code 3: not yet"),
        ("hangs", "was not ready within 1s", "its check: "),
        ("dies", "ended before it was ready", "exit code 7"),
        ("nothing", "cannot be run", "/no/such/program"),
    ],
)
def test_one_that_does_not_come_up_says_why_and_leaves_nothing(
    daemon: Daemon, name: str, message: str, cause: str
) -> None:
    with pytest.raises(NotReady, match=message) as caught:
        Sandbox.create(url=daemon.url, template=name)
    error = caught.value
    assert (error.code, error.infrastructure) == ("not_ready", False)
    assert cause in error.cause, error.cause
    made = daemon.ask("GET", "/v1/sandboxes").json["sandboxes"]
    assert [view for view in made if view["template"] == name] == []
    # Its pool tries on, and says why; the others' are filled all the same.
    if name != "late":
        until(lambda: b"template=" + name.encode() in daemon.log)
    until(lambda: ready(daemon, "web") > 0)


def test_those_of_a_pool_are_of_whoever_gets_them(daemon: Daemon) -> None:
    ours, theirs = daemon.key("ours"), daemon.key("theirs")
    until(lambda: ready(daemon, "web") > 0)
    id_ = daemon.sandbox(key=ours, template="web")
    other = daemon.sandbox(key=theirs, template="web")
    for path in (f"/v1/sandboxes/{id_}", f"/v1/sandboxes/{id_}/processes/start"):
        assert daemon.ask("GET", path, key=theirs).status == 404
    assert id_ != other
    for key, box in ((ours, id_), (theirs, other)):
        assert daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=key).status == 204


def test_one_whose_start_command_died_while_it_stood_ready_is_given_to_nobody() -> None:
    seconds = 100_000 + os.getpid()  # by which it is found on the machine
    text = f'[[template]]\nname = "web"\nstart = ["sleep", "{seconds}"]\nmin = 1\nmax = 1\n'
    with running(text) as daemon:
        until(lambda: ready(daemon, "web") > 0)
        until(lambda: bool(_running(f"sleep {seconds}")))
        for pid in _running(f"sleep {seconds}"):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not _running(f"sleep {seconds}"))
        killed = time.time()
        with Sandbox.create(url=daemon.url, template="web") as box:
            process = begun(daemon, box.id)
            assert process["state"] == "running" and process["started"] > killed


def _running(command: str) -> list[int]:
    """The processes of the machine that were started so."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().replace(b"\0", b" ").strip() == command.encode():
                found.append(int(path.parent.name))
    return found


def test_a_policy_is_asked_about_the_template() -> None:
    rules = """
decision := {"allow": input.sandbox.template != "web", "reasons": ["by the template"]} if {
	input.capability.name == "sandbox.create.v1"
} else := {"allow": true}
"""
    with running(TEMPLATES.replace("min = 1", "max = 0"), policy=rules) as daemon:
        refused = daemon.ask("POST", "/v1/sandboxes", {"template": "web"})
        assert refused.code == "policy_denied"
        assert "by the template" in refused.json["cause"]
        id_ = daemon.sandbox(template="cold")
        assert daemon.ask("DELETE", f"/v1/sandboxes/{id_}").status == 204


def test_a_policy_is_asked_about_one_that_stands_ready_too() -> None:
    """Whoever it was made for: it is given to those alone who may have it."""
    rules = """
decision := {"allow": input.principal.name != "theirs", "reasons": ["by who asks"]} if {
	input.capability.name == "sandbox.create.v1"
	input.sandbox.template == "web"
} else := {"allow": true}
"""
    with running(TEMPLATES, policy=rules) as daemon:
        ours, theirs = daemon.key("ours"), daemon.key("theirs")
        until(lambda: ready(daemon, "web") > 0)
        refused = daemon.ask("POST", "/v1/sandboxes", {"template": "web"}, key=theirs)
        assert refused.code == "policy_denied" and "by who asks" in refused.json["cause"]
        assert daemon.ask("GET", "/v1/sandboxes", key=theirs).json["sandboxes"] == []
        before = _from_pools(daemon)
        until(lambda: ready(daemon, "web") > 0)
        id_ = daemon.sandbox(key=ours, template="web")
        assert _from_pools(daemon) == before + 1
        assert daemon.ask("DELETE", f"/v1/sandboxes/{id_}", key=ours).status == 204


def test_a_reload_takes_a_template_away_and_another_start(tmp_path: Path) -> None:
    """What was made of it lives on. A daemon that is killed takes along what stood ready."""
    with running(TEMPLATES) as daemon:
        box = from_pool(daemon, "web")
        until(lambda: ready(daemon, "web") > 0)
        daemon.configure(TEMPLATES.replace("begun: $WORD", "anew: $WORD", 1))
        reload(daemon)
        until(lambda: ready(daemon, "web") > 0)
        with Sandbox.create(url=daemon.url, template="web") as other:
            until(lambda: b"anew: of the template" in said(daemon, other.id))
        until(lambda: ready(daemon, "web") > 0)
        daemon.stop(kill=True)
        daemon.configure("")
        daemon.start()
        assert daemon.ask("POST", "/v1/sandboxes", {"template": "web"}).status == 404
        views = daemon.ask("GET", "/v1/sandboxes").json["sandboxes"]
        assert [view["template"] for view in views] == ["web"], "those that stood ready are gone"
        process = begun(daemon, box.id)
        assert (process["tag"], process["state"]) == ("start", "running")
        assert box.run("echo $WORD", check=True).text == "of the template\n"
        box.kill()


@pytest.mark.needs("skopeo", "umoci")
def test_an_image_that_moves_takes_those_that_stand_ready_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, layout = Images(tmp_path), Layout(tmp_path / "layout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(images.cache))

    def pull(text: str) -> None:
        source = layout.add([busybox(file("what", text.encode()))], tag=text)
        images.run("pull", source, "--name", "moving")

    def what() -> str:
        with Sandbox.create(url=daemon.url, template="of-it") as box:
            assert box.enforcement["image"].asked == "moving"
            return box.run(["cat", "/what"], check=True).text

    text = '[[template]]\nname = "of-it"\nimage = "moving"\nmin = 1\n'
    with running(text) as daemon:  # there is no such image yet
        pull("one")
        until(lambda: ready(daemon, "of-it") > 0)
        assert what() == "one"
        until(lambda: ready(daemon, "of-it") > 0)
        pull("two")
        assert what() == "two"  # whether or not the pool has seen it
        before = _from_pools(daemon)

        def taken() -> bool:
            assert what() == "two"
            return _from_pools(daemon) > before

        until(taken)
        images.run("rm", "moving")
        assert daemon.ask("POST", "/v1/sandboxes", {"template": "of-it"}).status in (404, 422)
        until(lambda: ready(daemon, "of-it") == 0)


def _from_pools(daemon: Daemon) -> int:
    lines = daemon.ask("GET", "/metrics").body.decode().splitlines()
    return sum(
        int(float(line.split()[-1]))
        for line in lines
        if line.startswith("agentd_sandboxes_made_total") and 'source="pool"' in line
    )


def test_without_a_daemon_the_configuration_is_read_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = f'[[listen]]\naddress = "unix:{tmp_path}/s"\n'
    (tmp_path / "agentd.toml").write_text(listen + TEMPLATES)
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))
    with Sandbox.create(template="web", embedded=True, env={"B": "b"}) as box:
        assert box.url is None
        assert box.run("echo $WORD $B; ls /tmp", check=True).text == "of the template b\nup\n"
        assert box.enforcement["template"].asked == "web"
    with pytest.raises(NotReady, match="was not ready within 5s"):
        Sandbox.create(template="late", embedded=True)
    with pytest.raises(NotFound, match="there is no template 'nope'"):
        Sandbox.create(template="nope", embedded=True)


def test_a_call_without_a_daemon_is_of_its_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agentd.toml").write_text(TEMPLATES)
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))

    def called(template: str) -> subprocess.CompletedProcess[str]:
        asked = '{"command": "sh", "args": ["-c", "echo $WORD; ls /tmp"]}'
        words = ("call", "--embedded", "--template", template, "shell.exec.v1", "--params", asked)
        return subprocess.run(
            [sys.executable, "-m", "agentd", *words], check=False, capture_output=True, text=True
        )

    done = called("web")
    assert json.loads(done.stdout)["stdout"] == "of the template\nup\n", done
    done = called("nope")
    assert done.returncode == 1 and f"no template 'nope' in {tmp_path}/agentd.toml" in done.stderr
    done = called("late")
    assert done.returncode == 125 and "was not ready within 5s" in done.stderr
