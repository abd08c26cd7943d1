"""The SDK and the command line against a real ``agentd serve``."""

import asyncio
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
import warnings
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentd import AsyncSandbox, Client, Sandbox
from agentd.client.http import address
from agentd.client.http.client import HttpClient
from agentd.model.errors import AgentdError, Conflict, InvalidInput, NotFound, Refused
from agentd.model.result import CauseCode


class Daemon:
    """One whose process can be ended and started again on the same state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix:{folder}/agentd.sock"
        (folder / "agentd.toml").write_text(
            f'[[listen]]\naddress = "{self.url}"\n'
            f'[[auth.peers]]\nuid = {os.getuid()}\nscopes = ["admin"]\n'
            "[daemon]\ndrain = 1\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "agentd", "serve", "--config", f"{self.folder}/agentd.toml"]
        argv += ["--state", f"{self.folder}/state"]
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        client = HttpClient(address.parse(self.url))
        deadline = time.monotonic() + 120
        while True:
            try:
                client.call("GET", "/readyz")
                break
            except AgentdError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        client.close()

    def stop(self, *, kill: bool = False) -> None:
        assert self.process is not None
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        self.process.wait(120)

    def cli(self, *words: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [sys.executable, "-m", "agentd", *words],
            input=stdin,
            capture_output=True,
            env={**os.environ, "AGENTD_URL": self.url},
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def sandbox(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=daemon.url, labels={"of": "test"}, ttl="10m") as made:
        yield made


# --- the SDK ---


def test_connected_ones_are_the_same_sandbox(daemon: Daemon, sandbox: Sandbox) -> None:
    assert sandbox.labels == {"of": "test"}
    sandbox.run("echo kept > file", check=True)
    with Sandbox.connect(sandbox.id, url=daemon.url) as other:
        assert (other.id, other.info, other.labels) == (sandbox.id, sandbox.info, sandbox.labels)
        assert other.run("cat file").text == "kept\n"
    assert sandbox.run("cat file").text == "kept\n"  # to let go of it is not to end it
    with Sandbox.connect(sandbox.id, url=daemon.url) as other:
        other.kill()
    with pytest.raises(NotFound):
        Sandbox.connect(sandbox.id, url=daemon.url)


def test_one_that_is_forgotten_goes_on(daemon: Daemon) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        name = Sandbox.create(url=daemon.url, ttl="1m").id
    Sandbox.connect(name, url=daemon.url).kill()


def test_the_environment_names_the_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_URL", daemon.url)
    with Sandbox.create() as made, Sandbox.connect(made.id) as other:
        assert other.run("echo here").text == "here\n"


@pytest.fixture
def usual(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The daemon listens at the usual place, and is named nowhere."""
    (tmp_path / "agentd").mkdir()
    (tmp_path / "agentd/agentd.sock").symlink_to(daemon.folder / "agentd.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("AGENTD_URL", raising=False)
    return f"unix:{tmp_path}/agentd/agentd.sock"


def test_a_daemon_at_its_usual_place_is_taken_and_told(usual: str) -> None:
    with Sandbox.create() as found, Sandbox.create(embedded=True) as own:
        assert (found.url, own.url) == (usual, None)
        Sandbox.connect(found.id).close()
        with pytest.raises(NotFound):
            Sandbox.connect(own.id)

    async def main() -> None:
        async with await AsyncSandbox.create() as one:
            assert one.url == usual
        async with await AsyncSandbox.create(embedded=True) as other:
            assert other.url is None

    asyncio.run(main())


def test_a_snapshot_of_a_daemon_that_nobody_named_is_restored_there(usual: str) -> None:
    with Sandbox.create() as sandbox:
        sandbox.run("echo ready > state", check=True)
        with sandbox.snapshot() as kept, Sandbox.create(snapshot=kept) as again:
            assert (again.url, again.run("cat state").text) == (usual, "ready\n")


def test_one_of_a_daemon_that_nobody_named_ends_when_it_is_forgotten(usual: str) -> None:
    with pytest.warns(ResourceWarning, match="was never closed"):
        name = Sandbox.create().id
    with pytest.raises(NotFound):
        Sandbox.connect(name)
    name = Sandbox.create(ttl="1m").id  # that says how long
    Sandbox.connect(name).kill()


def test_a_refusal_of_a_daemon_that_nobody_named_says_the_way_round_it(usual: str) -> None:
    with pytest.raises(InvalidInput, match="unknown backend") as refused:
        Sandbox.create(backend="nosuch")
    assert refused.value.__notes__ == [
        f"asked of the daemon at {usual}; embedded=True makes one of this process"
    ]
    with pytest.raises(InvalidInput, match="embedded and url"):
        Sandbox.create(url=usual, embedded=True)


def test_where_the_daemon_has_gone_the_sandbox_is_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("AGENTD_URL", raising=False)
    (tmp_path / "agentd").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/agentd/agentd.sock")  # as after kill -9: nobody listens there
    with Sandbox.create() as own:
        assert own.url is None


def test_a_name_finds_it_again(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url, name="build") as made:
        assert made.name == "build"
        for again in (
            Sandbox.connect("build", url=daemon.url),
            Sandbox.get_or_create("build", url=daemon.url, memory="64M"),
        ):
            assert again.id == made.id
            again.close()  # lets go of it
        assert made.run("true").ok
        with pytest.raises(Conflict):
            Sandbox.create(url=daemon.url, name="build")

    async def main() -> str | None:
        found = await AsyncSandbox.get_or_create("other", url=daemon.url)
        await found.kill()
        return found.name

    assert asyncio.run(main()) == "other"
    made_by_line = daemon.cli("create", "--name", "third")
    done = daemon.cli("exec", "third", "--", "echo", "x")
    assert (done.returncode, done.stdout) == (0, b"x\n"), made_by_line.stderr
    assert daemon.cli("kill", "third").returncode == 0
    for name, why in (("build", "name is for the sandboxes of a daemon"), ("", "is no name of")):
        with pytest.raises(InvalidInput, match=why):
            Sandbox.create(embedded=True, name=name)


def test_a_lease(sandbox: Sandbox) -> None:
    with Client(sandbox.url) as client:
        before = client.sandboxes.get(sandbox.id).deadline
        sandbox.renew("1h")
        after = client.sandboxes.get(sandbox.id).deadline
    assert before is not None and after is not None and after > before + 1800


def test_what_needs_a_daemon_says_so() -> None:
    with pytest.raises(InvalidInput, match="labels is for the sandboxes of a daemon"):
        Sandbox.create(labels={"a": "b"})
    with Sandbox.create() as embedded:
        for use in (lambda: embedded.renew("1m"), lambda: embedded.attach("p")):
            with pytest.raises(Refused, match="a daemon is needed"):
                use()


def test_a_loop_that_is_left_loses_nothing_of_what_has_come(
    daemon: Daemon, sandbox: Sandbox
) -> None:
    begun = sandbox.start("echo out; echo err >&2")
    name = begun.id
    assert name is not None
    begun.wait()  # all of it is there, and comes at once
    with sandbox.attach(name) as process:
        first = next(iter(process))
        seen = process.cursors
        assert seen[first.stream] == len(first.data) and sum(seen.values()) == len(first.data)
        assert {first.stream, next(iter(process)).stream} == {"stdout", "stderr"}
        assert list(process) == []
    with sandbox.attach(name, seen) as again:
        assert {chunk.stream for chunk in again} == {"stdout", "stderr"} - {first.stream}

    async def main() -> None:
        async with await AsyncSandbox.connect(sandbox.id, url=daemon.url) as other:
            process = await other.attach(name)
            streams = []
            for _ in range(2):
                async for chunk in process:
                    streams.append(chunk.stream)
                    break
            assert sorted(streams) == ["stderr", "stdout"]
            await process.wait()

    asyncio.run(main())


def test_a_process_is_left_and_come_back_to(sandbox: Sandbox) -> None:
    process = sandbox.start("echo one; read x; echo $x; exit 4", stdin=True)
    assert next(iter(process)).data == b"one\n"
    name, cursors = process.id, process.cursors
    assert name is not None and cursors["stdout"] == 4
    process.detach()
    with sandbox.attach(name, cursors) as again:
        again.write("two\n")
        assert b"".join(chunk.data for chunk in again) == b"two\n"
        assert again.result.exit_code == 4
    with sandbox.attach(name) as whole:  # after its end as well
        assert b"".join(chunk.data for chunk in whole) == b"one\ntwo\n"


def test_a_character_is_whole_for_whoever_comes_back_amid_it(sandbox: Sandbox) -> None:
    process = sandbox.start(r"printf 'a\342\202'; read x; printf '\254'", stdin=True)
    assert str(next(iter(process))) == "a"
    name, cursors = process.id, process.cursors
    assert name is not None and cursors["stdout"] == 3
    process.detach()
    with sandbox.attach(name, cursors) as again:
        again.write("\n")
        assert [(chunk.data, chunk.text) for chunk in again] == [(b"\xac", "\N{EURO SIGN}")]


def test_an_interrupted_run_ends_its_command(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Any = sandbox._service
    call = service.requests.call

    def interrupted(method: str, path: str, *args: object, **options: object) -> object:
        if not path.endswith("/exec"):
            return call(method, path, *args, **options)
        # Sent, and begun: then whoever waits for the answer is interrupted.
        body = msgspec.to_builtins(args[0]) | {"wait": False}
        call(method, path, body, once=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(service.requests, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sandbox.run("sleep 1000")
    deadline = time.monotonic() + 120
    while any(found.state == "running" for found in service.commands.list(sandbox.id)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


_WITHOUT_DESCRIPTORS = """
import os, resource, sys
from agentd import Client, Sandbox
from agentd.model.errors import AgentdError
with Sandbox.create(url=sys.argv[1]) as box:
    box.run("true")  # its connection is kept
    held = [os.open("/dev/null", os.O_RDONLY)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0], hard))
    try:
        box.start("sleep 1000")
    except (AgentdError, OSError) as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with Client(sys.argv[1]) as client:
        while any(found.state == "running" for found in client.commands.list(box.id)):
            pass
"""


def test_a_command_that_cannot_be_given_out_is_ended(daemon: Daemon) -> None:
    """It has begun; its caller is told of an error, and cannot end it."""
    argv = [sys.executable, "-c", _WITHOUT_DESCRIPTORS, daemon.url]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0 and "Too many open files" in told.stdout, told


def test_async(daemon: Daemon) -> None:
    async def main() -> None:
        async with await AsyncSandbox.create(url=daemon.url, labels={"a": "b"}) as sandbox:
            assert sandbox.labels == {"a": "b"}
            data = os.urandom(1 << 20)
            many = [sandbox.run(["cat"], stdin=data) for _ in range(4)]
            assert all(result.stdout == data for result in await asyncio.gather(*many))
            await sandbox.files.write("/workspace/a", data)
            pieces = [piece async for piece in sandbox.files.read_iter("/workspace/a")]
            assert b"".join(pieces) == data
            text = [str(chunk) async for chunk in sandbox.stream("echo x; echo y")]
            assert "".join(text) == "x\ny\n"
            async with await sandbox.start("read x; echo got $x", stdin=True) as process:
                await process.write("it\n")
                assert b"".join([c.data async for c in process]) == b"got it\n"
            task = asyncio.create_task(sandbox.run("echo up > up; sleep 1000"))
            while (await sandbox.run("cat up")).status != "ok":
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (await sandbox.run("pgrep -x sleep || test $? != 1")).status == "ok":
                await asyncio.sleep(0.02)
            await sandbox.renew("5m")
            async with await AsyncSandbox.connect(sandbox.id, url=daemon.url) as other:
                assert (await other.run("wc -c < a")).text.strip() == str(len(data))

    asyncio.run(main())


def test_a_watch_is_left_by_cancelling(daemon: Daemon) -> None:
    async def main() -> str:
        async with await AsyncSandbox.create(url=daemon.url) as sandbox:
            changes = sandbox.files.watch("/workspace")
            first = asyncio.create_task(anext(changes))
            while not first.done():
                await sandbox.files.write("/workspace/seen", b"x")
                await asyncio.sleep(0.01)
            await changes.aclose()  # type: ignore[attr-defined]
            waiting = asyncio.create_task(anext(sandbox.files.watch("/tmp")))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return first.result().path

    assert asyncio.run(main()).startswith("/workspace/")


@pytest.mark.parametrize("kill", [False, True], ids=["drained", "killed"])
def test_a_command_is_followed_across_a_restart(tmp_path: Path, kill: bool) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    sandbox = Sandbox.create(url=daemon.url, ttl="5m")
    script = "n=0; while [ ! -e stop ]; do echo $((n=n+1)); sleep 0.02; done"
    with sandbox.start(script) as process:
        chunks = iter(process)
        seen = next(chunks).data
        daemon.stop(kill=kill)
        daemon.start()
        assert process.cursors["stdout"] == len(seen)
        while seen.count(b"\n") < 20:
            seen += next(chunks).data
        sandbox.files.write("/workspace/stop", b"")
        seen += b"".join(chunk.data for chunk in chunks)
        assert process.result.exit_code == 0
    numbers = [int(line) for line in seen.split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert sandbox.run("echo on").text == "on\n"
    sandbox.kill()
    daemon.stop()
    _check_audit(tmp_path / "state" / "audit", process.result.request_id)


@pytest.mark.parametrize("kill", [False, True], ids=["drained", "killed"])
def test_what_ended_before_a_restart_is_still_told(tmp_path: Path, kill: bool) -> None:
    daemon = Daemon(tmp_path)
    daemon.start()
    sandbox = Sandbox.create(url=daemon.url, ttl="5m")
    url = f"/v1/sandboxes/{sandbox.id}/processes"
    client = HttpClient(address.parse(daemon.url))
    talker = {"cmd": "echo told; echo twice >&2; exit 3", "tag": "talker"}
    client.call("POST", f"/v1/sandboxes/{sandbox.id}/exec", talker)
    sandbox.run("true")
    begun = {"cmd": "echo begun", "wait": False}
    client.call("POST", f"/v1/sandboxes/{sandbox.id}/exec", begun, once=True)
    told: list[Any] = []
    while [one["state"] for one in told] != ["ended"] * 3:
        told = client.call("GET", url, into=list[dict])
    first, second, third = (one["id"] for one in told)
    names = (first, "talker", second, third)
    before: dict[str, Any] = {
        name: client.call("GET", f"{url}/{name}", into=dict) for name in names
    }
    assert before["talker"] == before[first] and before[first]["result"]["exit_code"] == 3
    Sandbox.create(url=daemon.url).kill()  # is on disk when it is answered, and all before it
    daemon.stop(kill=kill)
    daemon.start()
    after = {name: client.call("GET", f"{url}/{name}", into=dict) for name in names}
    before[second]["result"]["timing"] = after[second]["result"][
        "timing"
    ]  # without output there is no journal
    assert after == before
    assert daemon.cli("logs", sandbox.id, first).stdout == b"told\n"
    assert daemon.cli("logs", sandbox.id, second).stdout == b""
    with pytest.raises(AgentdError, match="has ended"):
        client.call("POST", f"{url}/{first}/signal", {"signal": 15})
    sandbox.run("echo new")
    listed = [one["id"] for one in client.call("GET", url, into=list[dict])]
    assert listed[:3] == [first, second, third] and len(listed) == 4
    client.close()
    sandbox.kill()
    daemon.stop()


def _check_audit(folder: Path, request: str) -> None:
    """Whole, and with one start and one end of the command, though a daemon died between."""
    from agentd.audit.read import records
    from agentd.audit.verify import verify

    assert verify(str(folder)).ok
    kinds = [record.kind for record in records(str(folder)) if record.request == request]
    assert kinds == ["admission", "start", "end"]


def test_a_command_that_the_daemon_has_heard_is_not_done_twice(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentd.client.http.connection import Connection
    from agentd.client.http.errors import Unreachable

    sandbox.run("true")
    answer, lost = Connection.getresponse, []

    def lose(self: Connection) -> object:
        found = answer(self)
        if not lost:
            lost.append(found.read())
            raise ConnectionResetError("lost on the way back")
        return found

    monkeypatch.setattr(Connection, "getresponse", lose)
    with sandbox.start("echo x >> log") as process:  # with a key: sent again, and answered
        assert process.wait().exit_code == 0
    assert lost
    assert sandbox.run("cat log").text == "x\n"
    lost.clear()
    with pytest.raises(Unreachable, match="may have been done or not"):
        sandbox.run("echo y >> log")  # without one over a unix socket: not sent again
    assert sandbox.run("cat log").text == "x\ny\n"


# --- the command line ---


@pytest.fixture
def box(daemon: Daemon) -> Iterator[str]:
    name = daemon.cli("create", "--label", "of=cli").stdout.decode().strip()
    assert name.startswith("sbx-")
    yield name
    daemon.cli("kill", name)


def test_exec_passes_everything_through(daemon: Daemon, box: str) -> None:
    done = daemon.cli(
        "exec",
        "-i",
        "-e",
        "A=b",
        box,
        "--",
        "sh",
        "-c",
        "cat; echo $A >&2; exit 3",
        stdin=b"in\0\xff",
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, b"in\0\xff", b"b\n")
    done = daemon.cli("exec", "--timeout", "200ms", box, "--", "sleep", "60")
    assert done.returncode == 124
    assert done.stderr.startswith(b"agentd exec: timeout: ")
    value = json.loads(daemon.cli("exec", "--json", box, "--", "echo", "out").stdout)
    assert (value["stdout"], value["sandbox"]["id"]) == ("out\n", box)


def test_a_detached_command_and_its_logs(daemon: Daemon, box: str) -> None:
    script = "echo out; echo err >&2; while [ ! -e go ]; do sleep 0.02; done; exit 5"
    process = daemon.cli("exec", "-d", box, "--", "sh", "-c", script).stdout.decode().strip()
    assert process.startswith("prc-")
    with subprocess.Popen(
        [sys.executable, "-m", "agentd", "logs", "-f", box, process],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTD_URL": daemon.url},
    ) as follower:
        assert follower.stdout is not None and follower.stdout.readline() == b"out\n"
        daemon.cli("exec", box, "--", "touch", "go")
        out, err = follower.communicate(timeout=120)
    assert (follower.returncode, out, err) == (0, b"", b"err\n")
    done = daemon.cli("attach", "--all", box, process)
    assert (done.returncode, done.stdout, done.stderr) == (5, b"out\n", b"err\n")
    only = daemon.cli("logs", "--stream", "stderr", box, process)
    assert (only.stdout, only.stderr) == (b"", b"err\n")
    lines = daemon.cli("logs", "--json", box, process).stdout.splitlines()
    assert json.loads(lines[0]) == {"stream": "stdout", "data": "out\n", "encoding": "utf-8"}
    assert json.loads(lines[-1])["exit"]["exit_code"] == 5
    shown = json.loads(daemon.cli("inspect", "--json", box).stdout)
    assert process in [found["id"] for found in shown["processes"]]


def test_lines_of_json_are_text_where_the_output_is(daemon: Daemon, box: str) -> None:
    script = r"printf 'a\342'; printf '\303' >&2; read x; printf '\202\254'; printf '\251\377' >&2"
    sandbox = Sandbox.connect(box, url=daemon.url)
    read = b""
    with sandbox.start(script, stdin=True) as process:
        for chunk in process:
            read += chunk.data
            if sorted(read) == sorted(b"a\xe2\xc3"):
                process.write("\n")
    assert process.id is not None
    printed = daemon.cli("logs", "--json", box, process.id).stdout.splitlines()
    pieces = [line for line in map(json.loads, printed) if "data" in line]
    assert "".join(p["data"] for p in pieces if p["stream"] == "stdout") == "a\N{EURO SIGN}"
    assert {p["encoding"] for p in pieces if p["stream"] == "stdout"} == {"utf-8"}
    (errors,) = (p for p in pieces if p["stream"] == "stderr")
    assert (errors["encoding"], b64decode(errors["data"])) == ("base64", b"\xc3\xa9\xff")


def test_files_are_copied_both_ways(daemon: Daemon, box: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "sub" / "run").chmod(0o755)
    (tree / "link").symlink_to("sub/run")
    big = os.urandom(3 << 20)
    (tree / "big").write_bytes(big)
    assert daemon.cli("cp", str(tree), f"{box}:/workspace/").returncode == 0
    assert daemon.cli("exec", box, "--", "tree/link").stdout == b"ran\n"
    assert daemon.cli("cp", f"{box}:/workspace/tree", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "big").read_bytes() == big
    assert os.readlink(tmp_path / "back" / "link") == "sub/run"
    assert (tmp_path / "back" / "sub" / "run").stat().st_mode & 0o111
    renamed = daemon.cli("cp", "--json", f"{box}:/workspace/tree/big", str(tmp_path / "one"))
    assert json.loads(renamed.stdout) == {"bytes": len(big)}
    assert (tmp_path / "one").read_bytes() == big
    into = daemon.cli("cp", f"{box}:/workspace/tree", str(tmp_path / "back"))
    assert into.returncode == 0 and (tmp_path / "back" / "tree" / "big").exists()
    again = daemon.cli("cp", f"{box}:/workspace/tree", str(tmp_path / "back"))
    assert (again.returncode, b"exists already" in again.stderr) == (2, True)
    assert daemon.cli("cp", str(tree / "big"), f"{box}:/workspace/deep/down/big").returncode == 0
    assert daemon.cli("exec", box, "--", "ls", "deep/down").stdout == b"big\n"


def test_a_terminal(daemon: Daemon, box: str) -> None:
    """In a child that has one: its size, its keys, and Ctrl-P Ctrl-Q, which leaves it running."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid, fd = pty.fork()
    if pid == 0:
        os.environ["AGENTD_URL"] = daemon.url
        argv = [sys.executable, "-m", "agentd", "shell", "--shell", "sh", box]
        os.execv(sys.executable, argv)  # noqa: S606
    try:
        _read_until(fd, b"$ ")
        os.write(fd, b"echo $((6*7))\r")
        _read_until(fd, b"42")
        os.write(fd, b"\x10\x11")
        _read_until(fd, b"goes on")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(fd)
    assert code == 0
    done = daemon.cli("attach", "-i", box, stdin=b"echo back; exit 6\n")
    assert done.returncode == 6 and b"back" in done.stdout


def _read_until(fd: int, wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        assert select.select([fd], [], [], 120)[0], seen
        seen += os.read(fd, 4096)


def test_the_limit_that_ended_a_command_is_named(daemon: Daemon, box: str) -> None:
    done = daemon.cli("exec", "--timeout", "500ms", box, "--", "sleep", "60")
    assert done.returncode == 124 and b"ran longer than 0.5 s" in done.stderr


def test_what_is_no_utf_8_is_named(daemon: Daemon, box: str) -> None:
    for words in (["run", "--", "echo", "a\udcff"], ["exec", box, "echo", "a\udcff"]):
        done = daemon.cli(*words)
        assert done.returncode == 2
        assert b"'a\\udcff' is not UTF-8" in done.stderr and b"--embedded" in done.stderr


def test_finding_and_ending(daemon: Daemon, box: str) -> None:
    found = json.loads(daemon.cli("ls", "--json", "--label", "of=cli").stdout)
    assert [view["id"] for view in found] == [box]
    assert daemon.cli("ls", "-q", "--label", "of=nobody").stdout == b""
    table = daemon.cli("ls").stdout.decode()
    assert table.startswith("ID") and box in table and "of=cli" in table
    renewed = json.loads(daemon.cli("renew", "--json", box, "1h").stdout)
    assert renewed["deadline"] > time.time() + 3000
    able = "pause" in found[0]["abilities"]  # which takes a group that can be frozen
    assert daemon.cli("pause", box).returncode == (0 if able else 125)
    shown = daemon.cli("inspect", box).stdout.decode()
    assert "label of" in shown and "seccomp" in shown
    both = daemon.cli("kill", "sbx-nobody", box)
    assert both.returncode == 125 and b"sbx-nobody" in both.stderr
    assert daemon.cli("inspect", box).returncode == 125


def test_keys(daemon: Daemon, box: str) -> None:
    made = json.loads(
        daemon.cli("key", "create", "--name", "ci", "--scopes", "read", "--json").stdout
    )
    assert made["secret"].startswith("agd_") and made["scopes"] == ["read"]
    client = HttpClient(address.parse(daemon.url, api_key=made["secret"]))
    client.call("GET", "/v1/sandboxes")
    with pytest.raises(Refused) as caught:
        client.call("DELETE", f"/v1/sandboxes/{box}")
    assert caught.value.code == "forbidden"
    assert made["id"] in daemon.cli("key", "ls").stdout.decode()
    assert made["secret"] not in daemon.cli("key", "ls", "--json").stdout.decode()
    assert daemon.cli("key", "revoke", made["id"]).returncode == 0
    with pytest.raises(AgentdError) as gone:
        client.call("GET", "/v1/sandboxes")
    assert gone.value.code == "unauthenticated"
    client.close()


def test_stats(daemon: Daemon) -> None:
    value = json.loads(daemon.cli("stats", "--json").stdout)
    assert value["url"] == daemon.url and "agentd" in value["version"]
    assert "sandboxes" in daemon.cli("stats").stdout.decode()


@pytest.mark.parametrize("flag", [(), ("--embedded",)])
def test_run_says_where_it_ran(daemon: Daemon, flag: tuple[str, ...]) -> None:
    via = "embedded" if flag else daemon.url
    done = daemon.cli("run", "-v", *flag, "--", "sh", "-c", "echo out; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    said = b"this process" if flag else via.encode()
    assert done.stderr.startswith(b"agentd run: via " + said + b"\n")
    value = json.loads(daemon.cli("run", "--json", *flag, "--", "echo", "x").stdout)
    assert (value["via"], value["stdout"]) == (via, "x\n")
    assert daemon.cli("ls", "-q").stdout == b""


def test_a_run_outlives_its_first_lease(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentd.client import build
    from agentd.client.cli import run

    body = build.sandbox_body
    monkeypatch.setattr(build, "sandbox_body", lambda **asked: body(ttl=5.0, **asked))
    assert run.main(["--json", "--url", daemon.url, "--", "sleep", "8"]) == 0


def test_a_cause_is_told_by_the_daemon(daemon: Daemon, sandbox: Sandbox) -> None:
    assert sandbox.run("sleep 60", timeout=0.2).cause.code is CauseCode.TIMEOUT


def test_approvals_are_asked_for_over_the_socket(daemon: Daemon) -> None:
    done = daemon.cli("approval", "ls", "--json")
    assert (done.returncode, done.stdout) == (0, b"[]\n")
    done = daemon.cli("approval", "approve", "apr-none")
    assert done.returncode == 125
    assert b"there is no approval 'apr-none'" in done.stderr
