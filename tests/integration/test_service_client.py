"""The SDK's Client and AsyncClient, noun by noun, against a real ``agentd serve``."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import (
    AsyncClient,
    AsyncSandbox,
    Client,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    OperationFailed,
    Sandbox,
    TooLarge,
    Unauthenticated,
    Unreachable,
    Unsupported,
)
from agentd.audit import receipt
from agentd.model.api import ExecBody, RunBody, SandboxBody
from agentd.model.output import Output, OutputEvent


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon.url) as made:
        yield made


def test_sandboxes_are_found_by_label_and_ended(daemon: Daemon, client: Client) -> None:
    made = [Sandbox.create(url=daemon.url, labels={"job": name}, ttl="5m") for name in "ab"]
    assert {view.id for view in client.sandboxes.list()} >= {sandbox.id for sandbox in made}
    (found,) = client.sandboxes.list(labels={"job": "b"}, state="ready")
    assert found.id == made[1].id
    assert client.sandboxes.list(labels={"job": "c"}) == ()
    assert client.sandboxes.get(found.id).usage
    assert client.sandboxes.relabel(found.id, {"job": None, "x": "y"}).labels == {"x": "y"}
    later = client.sandboxes.renew(found.id, "1h").deadline
    assert later is not None and found.deadline is not None and later > found.deadline + 1800
    for sandbox in made:
        client.sandboxes.kill(sandbox.id)
    with pytest.raises(NotFound):
        client.sandboxes.get(found.id)
    for sandbox in made:
        sandbox.close()  # has gone: it only lets go


def test_a_sandbox_is_paused_and_goes_on(daemon: Daemon, client: Client) -> None:
    with Sandbox.create(url=daemon.url) as sandbox:
        try:
            assert client.sandboxes.pause(sandbox.id).state == "paused"
        except Unsupported:
            pytest.skip("this machine's walls cannot pause")
        with pytest.raises(Conflict):
            sandbox.run("true")
        assert client.sandboxes.resume(sandbox.id).state == "ready"
        assert sandbox.run("true").ok


def test_output_of_more_than_64_mib_is_read_in_parts(daemon: Daemon, client: Client) -> None:
    """What a sandbox writes is kept compressed, and may be many times as much as memory."""
    with (
        Sandbox.create(url=daemon.url) as sandbox,
        sandbox.start("head -c 70000000 /dev/zero; echo end") as begun,
    ):
        assert begun.id is not None
        for _ in begun:
            pass
        with pytest.raises(TooLarge) as caught:
            client.commands.output(sandbox.id, begun.id)
        assert "later byte" in caught.value.remediation
        assert client.commands.output(sandbox.id, begun.id, start=69_999_999) == b"\0end\n"


def test_commands_are_listed_read_and_signalled(daemon: Daemon, client: Client) -> None:
    with (
        Sandbox.create(url=daemon.url) as sandbox,
        sandbox.start("echo out; echo err >&2; exec sleep 600") as begun,
    ):
        assert begun.id is not None
        assert {next(iter(begun)).stream, next(iter(begun)).stream} == {"stdout", "stderr"}
        (listed,) = client.commands.list(sandbox.id)
        assert (listed.id, listed.state) == (begun.id, "running")
        assert client.commands.output(sandbox.id, begun.id) == b"out\n"
        assert client.commands.output(sandbox.id, begun.id, "stderr", 1) == b"rr\n"
        client.commands.signal(sandbox.id, begun.id, 9)
        assert begun.wait().signal == 9
        ended = client.commands.get(sandbox.id, begun.id)
        assert ended.result is not None and ended.result.signal == 9
        with pytest.raises(Conflict):
            client.commands.signal(sandbox.id, begun.id)
        with pytest.raises(NotFound):
            client.commands.get(sandbox.id, "prc-none")


def test_a_capability_is_called_without_a_sandbox_and_its_receipt_verifies(
    daemon: Daemon, client: Client
) -> None:
    assert "shell.exec.v1" in {about.name for about in client.capabilities.list()}
    heard: list[bytes] = []
    view = client.capabilities.call(
        "shell.exec.v1",
        {"command": "echo", "args": ["hi"]},
        emit=lambda kind, data: heard.append(data),
    )
    assert view.status == "ok" and b"".join(heard) == b"hi\n"
    statement = receipt.verify(client.receipts.get(view.receipt), client.receipts.key().encode())
    assert statement.predicate.execution.request == view.request_id
    with Sandbox.create(url=daemon.url) as sandbox:
        sandbox.files.write("/workspace/a", "kept")
        read = client.capabilities.call("fs.read.v1", {"path": "a"}, sandbox=sandbox.id)
        assert read.value["content"] == "kept"


def test_a_key_does_what_it_may_until_it_is_revoked(daemon: Daemon, client: Client) -> None:
    made = client.keys.create("reader", ["read"], ttl="1h")
    assert made.secret is not None and client.keys.get(made.id).secret is None
    assert made.id in {key.id for key in client.keys.list()}
    with Client(daemon.url, api_key=made.secret) as reader:
        assert reader.sandboxes.list() == ()
        with pytest.raises(Forbidden):
            reader.audit.head()
        client.keys.revoke(made.id)
        with pytest.raises(Unauthenticated, match="revoked"):
            reader.sandboxes.list()
    with pytest.raises(InvalidInput, match=r"\['read'\]"):
        client.keys.create("letters", "read")


def test_what_is_wrong_is_told_in_the_words_of_the_sdk(daemon: Daemon, client: Client) -> None:
    with pytest.raises(InvalidInput, match="id is of type int, and takes text"):
        client.sandboxes.get(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="labels is of type str, and takes a mapping"):
        client.sandboxes.list(labels="job=7")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="capability is of type int"):
        client.capabilities.call(5)  # type: ignore[arg-type]
    for ask in (
        lambda: client.commands.output("sbx-none", "prc-none", start=-1),
        lambda: client.audit.records(0),
    ):
        with pytest.raises(InvalidInput, match=r"^start -?\d is out of range"):
            ask()
    with pytest.raises(InvalidInput, match="limit 1001 is out of range"):
        client.audit.records(1, 1001)


def test_the_audit_log_and_the_daemon_tell_of_themselves(client: Client) -> None:
    head = client.audit.head()
    page = client.audit.records(head.seq, 1)
    assert head.seq >= 1 and len(page.records) == 1
    assert client.machine.version()["api"] == "v1"
    assert "linux" in {wall.name for wall in client.machine.backends()}
    assert client.machine.stats().sandboxes == 0
    assert client.approvals.list() == () and client.snapshots.list() == ()
    for ask in (client.approvals.get, client.snapshots.get, client.receipts.get, client.keys.get):
        with pytest.raises(NotFound):
            ask("none-0123456789abcdef")


def test_the_same_with_asyncio(daemon: Daemon) -> None:
    async def main() -> None:
        async with AsyncClient(daemon.url) as client:
            sandboxes, keys, version = await asyncio.gather(
                client.sandboxes.list(), client.keys.list(), client.machine.version()
            )
            assert (sandboxes, version["api"]) == ((), "v1")
            assert all(key.secret is None for key in keys)
            with pytest.raises(NotFound):
                await client.sandboxes.get("sbx-none")

    asyncio.run(main())


def test_what_changes_in_a_large_tree_is_told_once_its_watch_is_answered(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url) as sandbox, Client(daemon.url) as client:
        # What is closed is told as missed, and found first: the youngest is.
        make = "mkdir $(seq -f d%.0f 2000) d1/deep && cd d1 && touch $(seq 2000)"
        assert sandbox.run(f"{make} && mkdir -m 0 ../closed").ok
        last, late = "/workspace/d1/deep/new", "/workspace/late"
        for number in range(3):
            changes = client.files.watch(sandbox.id, "/workspace", recursive=True)
            sandbox.files.write(f"{last}{number}", b"")
            timer = threading.Timer(60, sandbox.files.write, (late, b""))
            timer.start()
            seen = next(one.path for one in changes if one.path.startswith((last, late)))
            timer.cancel()
            timer.join()
            assert seen == f"{last}{number}"


def test_a_watch_of_asyncio_that_is_cancelled_ends_as_cancelled(daemon: Daemon) -> None:
    async def main() -> None:
        async with (
            await AsyncSandbox.create(url=daemon.url) as sandbox,
            AsyncClient(daemon.url) as client,
        ):
            seen: list[str] = []

            async def watch() -> None:
                async for change in client.files.watch(sandbox.id, "/workspace"):
                    seen.append(change.path)

            watching = asyncio.create_task(watch())
            while not seen:
                await sandbox.files.write("/workspace/a", b"a")
                await asyncio.sleep(0.05)
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
            text = b"".join(
                [piece async for piece in client.files.read(sandbox.id, "/workspace/a")]
            )
            assert text == b"a"

    asyncio.run(main())


def test_where_no_daemon_is_it_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AGENTD_URL", raising=False)
    monkeypatch.setattr("agentd.client.http.address.sockets", lambda env: [f"{tmp_path}/none"])
    with pytest.raises(Unreachable) as found:
        Client()
    assert "agentd serve" in found.value.remediation
    with Client(f"unix:{tmp_path}/none") as nobody, pytest.raises(Unreachable):
        nobody.sandboxes.list()


def test_a_command_is_asked_for_followed_fed_and_ended(client: Client) -> None:
    view = client.sandboxes.create(SandboxBody(labels={"by": "noun"}, ttl="5m"))
    done = client.commands.exec(view.id, ExecBody(cmd="echo out; echo err >&2; exit 3"))
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    begun = client.commands.start(view.id, ExecBody(cmd="cat; echo over >&2", stdin_open=True))
    more = threading.Event()
    output = client.commands.follow(view.id, begun.id, {}, more.set)
    behind = client.commands.follow(view.id, begun.id, {"stdout": 2}, lambda: None, ["stdout"])
    client.commands.write(view.id, begun.id, b"one")
    client.commands.write(view.id, begun.id, b"two", eof=True)
    said, end = followed(output, more)
    assert said == {"stdout": b"onetwo", "stderr": b"over\n"}
    assert end.result is not None and end.result.status == "ok"
    assert output.read(1 << 20) == [], "nothing comes behind the exit"
    while not (pieces := behind.read(1 << 20)):
        more.wait(0.01)
    assert (pieces[0].offset, pieces[0].data[:1]) == (2, b"e")
    for one in (output, behind):
        one.close()
        one.close()
    with pytest.raises(Conflict):
        client.commands.resize(view.id, begun.id, 24, 80)
    with pytest.raises(NotFound):
        client.commands.follow(view.id, "prc-none", {}, more.set)
    (listed,) = client.sandboxes.list(labels={"by": "noun"}, limit=1)
    assert listed.id == view.id
    assert client.sandboxes.list(labels={"by": "noun"}, after=view.id) == ()
    client.sandboxes.kill(view.id)
    ran = client.commands.run(RunBody(exec=ExecBody(cmd="echo once")))
    assert ran.stdout == "once\n"


def followed(output: Output, more: threading.Event) -> tuple[dict[str, bytes], OutputEvent]:
    said = {"stdout": b"", "stderr": b""}
    while True:
        assert more.wait(60)
        more.clear()
        for event in output.read(1 << 20):
            if event.kind == "exit":
                return said, event
            assert event.offset == len(said[event.stream])
            said[event.stream] += event.data


def test_files_are_written_read_listed_and_moved(client: Client) -> None:
    id_ = client.sandboxes.create().id
    files = client.files
    assert files.write(id_, "/workspace/d/a", [b"one", b"two"], parents=True, mode=0o600) == 6
    assert b"".join(files.read(id_, "/workspace/d/a", 3)) == b"two"
    files.mkdir(id_, "/workspace/e")
    files.move(id_, "/workspace/d/a", "/workspace/e/b")
    assert [entry.name for entry in files.list(id_, "/workspace/e")] == ["b"]
    assert (
        files.stat(id_, "/workspace/e/b").size,
        files.stat(id_, "/workspace/e/b").mode & 0o777,
    ) == (6, 0o600)
    files.write_tar(id_, "/workspace/f", files.read_tar(id_, "/workspace/e"), whole=True)
    assert b"".join(files.read(id_, "/workspace/f/b")) == b"onetwo"
    files.remove(id_, "/workspace/e", recursive=True)
    with pytest.raises(OperationFailed):
        files.stat(id_, "/workspace/e")
    with pytest.raises(OperationFailed, match="refused"):
        client.ports.open(id_, 80)
    client.sandboxes.kill(id_)


def test_a_call_is_asked_for_as_it_is_written(client: Client) -> None:
    body = b'{"capability": "fs.list.v1", "parameters": {"path": "/"}}'
    pieces: list[str] = []
    for emit in (None, lambda kind, _: pieces.append(kind)):
        view = client.capabilities.request(body, emit=emit)
        assert view.status == "ok" and view.value["entries"]
    made = client.capabilities.call("fs.list.v1", create=SandboxBody(isolation="namespace"))
    assert made.sandbox is not None and made.sandbox.level == "namespace"


def test_pieces_come_to_a_task(daemon: Daemon) -> None:
    async def work() -> bytes:
        async with AsyncClient(daemon.url) as client:
            view = await client.sandboxes.create()
            await client.files.write(view.id, "/workspace/a", [b"x" * 300_000, b"y"])
            found = b"".join([piece async for piece in client.files.read(view.id, "/workspace/a")])
            async for _ in client.files.read(view.id, "/workspace/a"):
                break
            await client.sandboxes.kill(view.id)
            return found

    assert asyncio.run(work()) == b"x" * 300_000 + b"y"
