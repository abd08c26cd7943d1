"""The SDK's Client and AsyncClient, noun by noun, against a real ``agentd serve``."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import (
    AsyncClient,
    Client,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    Sandbox,
    Unauthenticated,
    Unreachable,
    Unsupported,
)
from agentd.audit import receipt


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
    with pytest.raises(InvalidInput, match="an id is of type int, and takes text"):
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


def test_where_no_daemon_is_it_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AGENTD_URL", raising=False)
    monkeypatch.setattr("agentd.client.http.address.sockets", lambda env: [f"{tmp_path}/none"])
    with pytest.raises(InvalidInput) as found:
        Client()
    assert "agentd serve" in found.value.remediation
    with Client(f"unix:{tmp_path}/none") as nobody, pytest.raises(Unreachable):
        nobody.sandboxes.list()
