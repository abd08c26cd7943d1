"""A wrong argument is told by its name and what it takes, by each way in, and never as a TypeError
from deep inside."""

import asyncio
import contextlib
import io
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import AsyncSandbox, Client, ExecLimits, Sandbox
from agentd.ingest.rest.operation import decode_json
from agentd.model import api
from agentd.model.errors import InvalidInput
from agentd.model.port import LinkBody

_CREATE: list[tuple[dict[str, Any], str]] = [
    ({"workspace": 5}, "workspace 5 is no path"),
    ({"cpus": [1]}, r"cpus \[1\] is not a number of cores"),
    ({"cpus": True}, "cpus True is not a number of cores"),
    ({"memory": True}, "memory True is not a size"),
    ({"pids": True}, "pids True is not a count"),
    ({"disk": True}, "disk True is not a size"),
    ({"open_files": True}, "open_files True is not a count"),
    ({"output": True}, "output True is not a size"),
    ({"timeout": True}, "timeout True is not a time"),
    ({"net": "pypi", "net_bytes": True}, "net_bytes True is not a size"),
    ({"net": "pypi", "net_rate": True}, "net_rate True is not a size"),
    ({"user": True}, "user 'True' is not known inside a sandbox"),
    ({"ttl": True}, "ttl is of type bool, and takes seconds or text"),
    ({"image": 5}, "image 5 is not a name"),
    ({"env": {"PORT": 8080}}, "environment variable 'PORT' is not text"),
    ({"timeout": [1]}, r"timeout \[1\] is not a time"),
    ({"api_key": 5}, "api_?key|API key"),
    ({"url": 5}, "5 is not the address of a daemon"),
    ({"net": 5}, "net is of type int, and takes text, or a list of rules"),
    ({"net": b"pypi"}, "net is of type bytes, and takes text, or a list of rules"),
    ({"net": {"pypi": 443}}, "net is of type dict"),
    ({"packages": b"six"}, "packages are no list of names"),
    ({"packages": {"six": "1.17"}}, "packages are no list of names"),
    ({"secrets": {"T": "t.example.com"}}, "secrets are no list of secrets"),
    ({"mounts": {"/tmp": "/a"}}, "mounts are no list of mounts"),
    ({"volumes": {"data:/data": "rw"}}, "volumes are no list of volumes"),
    ({"volumes": b"data:/data"}, "volumes are no list of volumes"),
    ({"embedded": "x"}, "embedded is of type str, and takes True or False"),
    ({"ttl": [1]}, "ttl is of type list, and takes seconds or text"),
    ({"wait": [1]}, "wait is of type list, and takes seconds or text"),
    ({"backend": object()}, "backend is of type object, and takes text"),
    ({"snapshot": 5}, "snapshot is of type int, and takes an id, a path or a Snapshot"),
    (
        {"labels": {"job": 7}},
        r"label 'job' is of type int, and takes text \(write it as .*\"7\"}\)",
    ),
    ({"label": {"job": "7"}}, "there is no option 'label'; use one of: .*, labels, ttl"),
]
# On a sandbox ``s``: each is a call, and what is said of it.
_ASKED: list[tuple[Callable[[Any], Any], str]] = [
    (lambda s: s.run("true", stdin=5), "stdin is of type int, and takes text or bytes"),
    (lambda s: s.run("true", stdin=["a"]), "stdin is of type list"),
    (lambda s: s.start("true", stdin=b"data"), "stdin is of type bytes, and takes True or False"),
    (lambda s: s.run("true", cwd=5), "working directory 5 is not a path"),
    (lambda s: s.run("true", env={"A": None}), "environment variable 'A' is not text"),
    (lambda s: s.run("true", timeout=[1]), r"timeout \[1\] is not a time"),
    (lambda s: s.run(5), "command 5 cannot be run"),
    (lambda s: s.run({"echo": "a"}), "command {'echo': 'a'} cannot be run"),
    (lambda s: s.start({"echo"}), "command {'echo'} cannot be run"),
    (lambda s: s.start("true", pty=("a", 1)), "a terminal cannot have 'a' rows"),
    (lambda s: s.call(5), "capability is of type int, and takes text"),
    (lambda s: s.call("fs.list.v1", 5), "parameters is of type int, and takes a mapping"),
    (lambda s: s.call("fs.list.v1", {1: 2}), "parameters is of type dict"),
    (lambda s: s.call("fs.list.v1", path=object()), "JSON has no value for"),
    (lambda s: s.call("fs.list.v1", path="/", bundle=5), "bundle is of type int"),
    (lambda s: s.attach(5), "process is of type int"),
    (lambda s: s.attach("prc-0123456789abcdef", {"stdout": "a"}), "the cursor of stdout"),
    (lambda s: s.snapshot(5), "path is of type int, and takes text or a path"),
    (lambda s: s.run("true", timeout=10**5000), "timeout of type int, and so long, is not a time"),
    (lambda s: s.fork("2"), "count is of type str, and takes a whole number"),
    (lambda s: s.run("true", timeout=True), "timeout True is not a time"),
    (lambda s: s.run("true", limits=ExecLimits(cpu=True)), "limit cpu of a command is True"),
    (lambda s: s.run_code("1", timeout=False), "timeout False is not a time"),
    (lambda s: s.ports.open(True), "port is of type bool, and takes a whole number"),
    (lambda s: s.ports.forward(80, True), "host_port is of type bool"),
    (lambda s: s.ports.link(80, ttl=True), "ttl True is not a time|ttl is of type bool"),
    (lambda s: s.run("true", check="x"), "check is of type str, and takes True or False"),
    (lambda s: s.run_code(5), "code is of type int"),
    (lambda s: s.run_code("1", context=5), "context is of type int"),
    (lambda s: s.run_code("1", reset="x"), "reset is of type str, and takes True or False"),
    (lambda s: s.run_code("1", emit=5), "emit is of type int, and takes a function"),
    (lambda s: s.call("fs.list.v1", path="/", keep="x"), "keep is of type str"),
    (lambda s: s.ports.link(80, ttl="x"), "ttl 'x' is not a time"),
    (lambda s: s.network.set(b"pypi"), "network rules are no list of texts|net is of type bytes"),
    (lambda s: s.network.connections("x"), "after is of type str, and takes a whole number"),
    (lambda s: s.network.play(5), "cassette is of type int, and takes text or a path"),
    (lambda s: s.files.read(5), "path is of type int, and takes text or a path"),
    (lambda s: s.files.read(None), "path is None, and takes text or a path"),
    (lambda s: s.files.read(b"/a"), "path is of type bytes"),
    (lambda s: s.files.read("/etc/passwd", "a"), "offset is of type str"),
    (lambda s: s.files.read("/etc/passwd", 0, 1.5), "length is of type float"),
    (lambda s: s.files.read("/etc/passwd", -1), "offset -1 is out of range"),
    (lambda s: s.files.read_text(5), "path is of type int"),
    (lambda s: s.files.read_text("/etc/passwd", "utf-9"), "there is no encoding 'utf-9' of texts"),
    (lambda s: s.files.read_text("/etc/passwd", 8), "encoding is of type int, and takes text"),
    (lambda s: s.files.write("/tmp/a", 5), "data is of type int, and takes text, bytes"),
    (lambda s: s.files.write("/tmp/a", None), "data is None, and takes text, bytes"),
    (lambda s: s.files.write("/tmp/a", {"a": 1}), "data is of type dict"),
    (lambda s: s.files.write("/tmp/a", ["a"]), "a piece of data is of type str"),
    (lambda s: s.files.write("/tmp/a", io.StringIO("a")), "a piece of data is of type str.*'rb'"),
    (lambda s: s.files.write(5, "a"), "path is of type int"),
    (lambda s: s.files.write("/tmp/a", "a", mode="644"), "mode is of type str.*0o644"),
    (lambda s: s.files.write("/tmp/a", "a", mode=0o20000), "mode 0o20000 is no mode of a file"),
    (lambda s: s.files.mkdir("/tmp/d", mode=1.5), "mode is of type float"),
    (lambda s: s.files.mkdir("/tmp/d", mode=0o4755), "mode 2541 is out of range.*0o1777"),
    (lambda s: s.files.write("/tmp/a", "a", parents="x"), "parents is of type str"),
    (lambda s: s.files.mkdir("/tmp/d", parents=None), "parents is None, and takes True or False"),
    (lambda s: s.files.remove("/tmp/d", recursive="x"), "recursive is of type str"),
    (lambda s: s.files.upload("/etc/hostname", "/tmp/x", replace=[]), "replace is of type list"),
    (lambda s: s.files.download("/etc/hostname", "x", replace=0), "replace is of type int"),
    (lambda s: s.files.list(5), "path is of type int"),
    (lambda s: s.files.stat(5), "path is of type int"),
    (lambda s: s.files.exists(5), "path is of type int"),
    (lambda s: s.files.remove(5), "path is of type int"),
    (lambda s: s.files.move(5, "/tmp/b"), "path is of type int"),
    (lambda s: s.files.move("/tmp/b", 5), "to is of type int"),
    (lambda s: s.files.upload(5, "/tmp/b"), "host_path is of type int"),
    (lambda s: s.files.upload("/etc/hostname", 5), "path is of type int"),
    (lambda s: s.files.download(5, "x"), "path is of type int"),
    (lambda s: s.files.download("/etc/hostname", 5), "host_path is of type int"),
]
_RUNNING: list[tuple[Callable[[Any], Any], str]] = [
    (lambda p: p.write(5), "data is of type int, and takes text or bytes"),
    (lambda p: p.signal("TERM"), "there is no signal 'TERM'"),
    (lambda p: p.signal(1.5), "there is no signal 1.5"),
    (lambda p: p.signal(True), "there is no signal True"),
    (lambda p: p.resize(True, 1), "a terminal cannot have True rows"),
    (lambda p: p.resize("a", 1), "a terminal cannot have 'a' rows"),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("wrong"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(params=["here", "by a daemon"])
def where(request: pytest.FixtureRequest, daemon: Daemon) -> dict[str, str]:
    return {} if request.param == "here" else {"url": daemon.url}


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except InvalidInput as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


async def told(call: Callable[[], Awaitable[Any]]) -> str:
    try:
        await call()
    except InvalidInput as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def wrong(found: dict[str, str]) -> dict[str, str]:
    return {pattern: text for pattern, text in found.items() if not re.search(pattern, text)}


def test_by_the_sdk(where: dict[str, str]) -> None:
    found = {p: said(lambda o=o: Sandbox.create(**{**where, **o})) for o, p in _CREATE}
    with Sandbox.create(**where) as made:
        found |= {p: said(lambda c=c: c(made)) for c, p in _ASKED}
        found |= {"stdin is of type int": said(lambda: made.stream("true", stdin=5))}
        found |= {
            "recursive is of type int": said(lambda: next(made.files.watch("/tmp", recursive=1)))
        }
        with made.start("cat", stdin=True) as process:
            found |= {p: said(lambda c=c: c(process)) for c, p in _RUNNING}
    assert wrong(found) == {}


# On the nouns of a client ``c``, of a sandbox ``s`` by its id.
_OF_NOUNS: list[tuple[Callable[[Any, str], Any], str]] = [
    (lambda c, s: c.sandboxes.get(5), "^id is of type int, and takes text"),
    (lambda c, s: c.sandboxes.create(None), "^body is None, and takes a SandboxBody"),
    (lambda c, s: c.sandboxes.list(after=5), "^after is of type int, and takes text"),
    (lambda c, s: c.sandboxes.renew(s, object()), "^ttl is of type object, and takes text or a n"),
    (lambda c, s: c.sandboxes.fork(s, True), "^count is of type bool, and takes a whole number"),
    (lambda c, s: c.commands.exec(s, {"cmd": "true"}), "^body is of type dict, and takes an Exec"),
    (lambda c, s: c.commands.write(s, "prc-0", 7), "^data is of type int, and takes bytes"),
    (lambda c, s: c.commands.follow(s, "p", None, print), "^cursors is None, and takes a map"),
    (lambda c, s: c.commands.follow(s, "p", {}, 5), "^notify is of type int, and takes a funct"),
    (lambda c, s: c.commands.output(5, "p"), "^sandbox is of type int, and takes text"),
    (lambda c, s: c.files.write(s, "/tmp/a", 7), "^data is of type int, and takes bytes or an it"),
    (lambda c, s: c.files.write(s, "/tmp/a", [1]), "^a piece of data is of type int"),
    (lambda c, s: c.files.write(s, "/tmp/a", b"", mode="644"), "^mode is of type str"),
    (lambda c, s: c.files.write_tar(s, "/tmp", b"", whole=1), "^data is of type bytes"),
    (lambda c, s: c.files.remove(s, "/tmp/a", recursive=None), "^recursive is None"),
    (lambda c, s: next(c.files.read(s, "/tmp/a", "x")), "^offset is of type str"),
    (lambda c, s: c.capabilities.request(None), "^body is None, and takes bytes"),
    (lambda c, s: c.capabilities.call("fs.read.v1", cancel=None), "^cancel is None"),
    (lambda c, s: c.keys.create("a", None), "^scopes is None, and takes a list"),
    (lambda c, s: c.keys.create("a", "read"), r"^scopes is of type str.*\['read'\]"),
    (lambda c, s: c.network.play(s, 5), "^cassette is of type int, and takes bytes"),
    (lambda c, s: c.network.set(s, 5), "^net is of type int, and takes text or an iterable"),
    (lambda c, s: c.ports.link(s, 80, ttl=object()), "^ttl is of type object"),
    (lambda c, s: c.volumes.create("v", size=True), "^size is of type bool, and takes text or a w"),
    (lambda c, s: c.volumes.create("v", size=[]), "^size is of type list, and takes text or a w"),
    (lambda c, s: c.approvals.decide("a", allow="x"), "^allow is of type str, and takes True or"),
    (lambda c, s: c.secrets.set(5, "x"), "^name is of type int"),
]


def test_by_the_nouns_of_a_client(daemon: Daemon) -> None:
    with Client(daemon.url) as client, Sandbox.create(url=daemon.url) as made:
        found = {p: said(lambda c=c: c(client, made.id)) for c, p in _OF_NOUNS}
        assert wrong(found) == {}
        client.files.write(made.id, "/tmp/a", [b"a", b"", bytearray(b"b")])
        assert b"".join(client.files.read(made.id, "/tmp/a")) == b"ab"


# JSON has no value for them, and null in their place is what is not asked for: a key for ever.
_NO_NUMBERS: list[Callable[[Any, str, float], Any]] = [
    lambda c, s, n: c.sandboxes.create(api.SandboxBody(ttl=n)),
    lambda c, s, n: c.sandboxes.create(api.SandboxBody(wait=n)),
    lambda c, s, n: c.sandboxes.create(api.SandboxBody(timeout=n)),
    lambda c, s, n: c.sandboxes.renew(s, n),
    lambda c, s, n: c.commands.exec(s, api.ExecBody(cmd="true", timeout=n)),
    lambda c, s, n: c.commands.run(
        api.RunBody(exec=api.ExecBody(cmd="true", timeout=n), sandbox=api.SandboxBody())
    ),
    lambda c, s, n: c.keys.create("never", ["read"], ttl=n),
    lambda c, s, n: c.capabilities.call("fs.list.v1", {"path": [{"a": n}]}),
    lambda c, s, n: c.capabilities.call("fs.list.v1", {"path": {n}}),
    lambda c, s, n: Sandbox.create(url=c.url, ttl=n),
    lambda c, s, n: Sandbox.create(url=c.url, wait=n),
]


def test_no_number_is_sent_as_nothing(daemon: Daemon) -> None:
    with Client(daemon.url) as client, Sandbox.create(url=daemon.url) as made:
        for n in (float("nan"), float("inf"), float("-inf")):
            for ask in _NO_NUMBERS:
                assert re.search(
                    rf"^\w+ holds {n}, and JSON has no value|^(ttl|wait) {n} is (not|out)",
                    said(lambda ask=ask, n=n: ask(client, made.id, n)),
                )
        assert not client.keys.list()
        assert [found.id for found in client.sandboxes.list()] == [made.id]
        client.sandboxes.relabel(made.id, {"none": None})  # a null that is meant


def test_by_rest_true_is_no_number(daemon: Daemon) -> None:
    bodies = [
        kind
        for kind in (*vars(api).values(), LinkBody)
        if isinstance(kind, type) and kind.__name__.endswith("Body") and kind is not api._Body
    ]
    assert len(bodies) > 12
    taken = set()
    for kind in bodies:
        for field in msgspec.structs.fields(kind):
            with contextlib.suppress(InvalidInput):
                decode_json(kind, msgspec.json.encode({field.encode_name: True}))
                taken.add(field.name)
    assert taken == {"writable", "allow"}
    with Client(daemon.url) as client:
        body = api.SandboxBody(cpus=True)
        assert "cpus" in said(lambda: client.sandboxes.create(body))


def test_by_the_sdk_for_asyncio(where: dict[str, str]) -> None:
    async def ask() -> dict[str, str]:
        found = {
            p: await told(lambda o=o: AsyncSandbox.create(**{**where, **o})) for o, p in _CREATE
        }
        async with await AsyncSandbox.create(**where) as made:
            found |= {p: await told(lambda c=c: c(made)) for c, p in _ASKED}
            found |= {"stdin is of type int": said(lambda: made.stream("true", stdin=5))}
            async with await made.start("cat", stdin=True) as process:
                found |= {p: await told(lambda c=c: c(process)) for c, p in _RUNNING}
        return found

    assert wrong(asyncio.run(ask())) == {}


def test_what_is_right_still_is(where: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"file")
    with Sandbox.create(**where) as made:
        inside = PurePosixPath("/tmp/a")
        for data in ("a", b"a", bytearray(b"a"), memoryview(b"a"), [b"a", b""], io.BytesIO(b"a")):
            assert made.files.write(inside, data) == 1
            assert made.files.read(inside) == b"a"
        with open(tmp_path / "in", "rb") as file:
            assert made.files.write("/tmp/b", file, mode=0o600) == 4
        assert made.files.upload(tmp_path / "in", PurePosixPath("/tmp/c")) == 4
        assert made.run("cat", stdin=bytearray(b"in")).stdout == b"in"
        assert made.run("cat", stdin="").stdout == b""
