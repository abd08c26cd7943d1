"""The client against servers made of both of Firecracker's own API files, and against liars."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.firecracker.machine import Machine
from tests.firecracker.schema import FILES, load
from tests.firecracker.server import MAX_CONNECTIONS, Server

from agentd.model.errors import BackendLost, InvalidInput
from agentd.sandbox.backends.firecracker import api
from agentd.sandbox.backends.firecracker.api import ApiClient, ApiError

SECONDS = 120.0


@pytest.fixture(params=FILES)
def address(
    request: pytest.FixtureRequest, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Of a server of one release, with nothing configured."""
    monkeypatch.chdir(place)
    (place / "kernel").touch()
    path = str(place / "api")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        server = Server(listener, Machine(load(request.param), "vm-1", {}))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def connect(address: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.connect(address)
    return stream


@pytest.fixture
def client(address: str) -> Iterator[ApiClient]:
    client = ApiClient(connect(address))
    yield client
    client.close()


def test_its_state_and_version_are_told(client: ApiClient) -> None:
    about = client.request("GET", "/", None, SECONDS)
    assert (about["id"], about["state"]) == ("vm-1", "Not started")
    assert client.request("GET", "/version", None, SECONDS)["firecracker_version"] in FILES


def test_what_is_put_is_in_the_configuration(client: ApiClient) -> None:
    body = {"vcpu_count": 2, "mem_size_mib": 256}
    assert client.request("PUT", "/machine-config", body, SECONDS) is None
    found = client.request("GET", "/machine-config", None, SECONDS)
    assert found | body == found


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "colour": 1}, "colour"),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "v"}, "minimum"),
        ("PUT", "/vsock", {"uds_path": "v"}, "guest_cid"),
        ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 1}, "maximum"),
        ("PUT", "/machine-config", {"vcpu_count": "1", "mem_size_mib": 1}, "integer"),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 1, "smt": 1}, "boolean"),
        ("PUT", "/actions", {"action_type": "Explode"}, "Explode"),
        ("PUT", "/serial", {"rate_limiter": {"size": 1}}, "refill_time"),
        ("PUT", "/boot-source", {"kernel_image_path": "absent"}, "cannot be opened"),
        ("PUT", "/actions", {"action_type": "InstanceStart"}, "without kernel"),
        ("PATCH", "/vm", {"state": "Paused"}, "before starting"),
        ("PUT", "/snapshot/create", {"snapshot_path": "a", "mem_file_path": "b"}, "before start"),
        ("PUT", "/no/such/thing", {"a": 1}, "Invalid request method and/or path"),
        ("PATCH", "/boot-source", {"kernel_image_path": "kernel"}, "Invalid request method"),
        ("PUT", "/boot-source", None, "Empty PUT request"),
        ("PUT", "/boot-source", [], "object"),
    ],
)  # fmt: skip
def test_what_the_schema_or_the_phase_refuses_is_an_error_with_its_words(
    client: ApiClient, method: str, path: str, body: dict[str, object] | None, words: str
) -> None:
    with pytest.raises(ApiError) as caught:
        client.request(method, path, body, SECONDS)
    assert caught.value.status == 400
    assert words in caught.value.fault
    assert f"{method} {path}" in caught.value.message
    # The connection goes on.
    assert client.request("GET", "/", None, SECONDS)["id"] == "vm-1"


def test_configuring_after_the_start_and_starting_twice_are_refused(client: ApiClient) -> None:
    client.request("PUT", "/boot-source", {"kernel_image_path": "kernel"}, SECONDS)
    client.request("PUT", "/actions", {"action_type": "InstanceStart"}, SECONDS)
    assert client.request("GET", "/", None, SECONDS)["state"] == "Running"
    for path, body in (
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}),
        ("/actions", {"action_type": "InstanceStart"}),
    ):
        with pytest.raises(ApiError, match="after starting"):
            client.request("PUT", path, body, SECONDS)


def test_a_snapshot_is_not_loaded_into_a_configured_process(client: ApiClient) -> None:
    client.request("PUT", "/logger", {"level": "Info"}, SECONDS)
    client.request("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 1}, SECONDS)
    body = {"snapshot_path": "s", "mem_backend": {"backend_type": "File", "backend_path": "m"}}
    with pytest.raises(ApiError, match="after configuring"):
        client.request("PUT", "/snapshot/load", body, SECONDS)


def test_the_eleventh_connection_is_turned_away(address: str) -> None:
    clients = []
    for _ in range(MAX_CONNECTIONS):
        clients.append(ApiClient(connect(address)))
        clients[-1].request("GET", "/", None, SECONDS)
    late = ApiClient(connect(address))
    with pytest.raises((ApiError, BackendLost)) as caught:
        late.request("GET", "/", None, SECONDS)
    # The refusal may meet a request on its way, which the kernel answers with a reset.
    assert getattr(caught.value, "status", 503) == 503
    for client in (*clients, late):
        client.close()


def test_a_body_over_the_limit_is_not_sent(client: ApiClient) -> None:
    with pytest.raises(InvalidInput, match="51200"):
        client.request("PUT", "/mmds", {"a": "b" * api.MAX_BODY}, SECONDS)
    client.request("PUT", "/mmds", {"a": "b" * (api.MAX_BODY - 8)}, SECONDS)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nx: y", "/ä", "/" + "a" * 1100])
def test_a_path_that_would_break_the_request_is_not_sent(path: str) -> None:
    with pytest.raises(InvalidInput):
        api.encode("GET", path, None)


def test_the_server_reads_no_chunked_body_and_no_long_one(address: str) -> None:
    """What the client must never do, and the fake therefore must refuse as the real one does."""
    head = b"PUT /mmds HTTP/1.1\r\nContent-Type: application/json\r\n"
    for extra, words in (
        (b"Transfer-Encoding: chunked\r\n\r\n", b"Empty PUT request"),
        (b"Content-Length: 51201\r\n\r\n", b"larger than the limit"),
    ):
        with connect(address) as stream:
            stream.sendall(head + extra)
            assert words in stream.recv(4096)


# --- a monitor that a guest has taken over ---


@pytest.fixture
def liar() -> Iterator[Callable[[bytes], ApiClient]]:
    """A server that says these bytes whatever it is asked, and then ends."""
    opened: list[ApiClient | socket.socket] = []

    def make(said: bytes) -> ApiClient:
        ours, theirs = socket.socketpair()
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        client = ApiClient(ours)
        opened.extend((client, theirs))
        return client

    yield make
    for end in opened:
        end.close()


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 9000,
    ],
)  # fmt: skip
def test_an_answer_that_is_none_loses_the_backend(
    liar: Callable[[bytes], ApiClient], said: bytes
) -> None:
    client = liar(said)
    with pytest.raises(BackendLost):
        client.request("GET", "/", None, SECONDS)
    with pytest.raises(BackendLost, match="closed"):  # it is not used again
        client.request("GET", "/", None, SECONDS)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[" * 100_000, b"\xff", b"[]", b'"words"', b'{"fault_message":[1]}', b"{}", b"null",
    ],
)  # fmt: skip
def test_a_refusal_without_proper_words_is_still_a_refusal(
    liar: Callable[[bytes], ApiClient], body: bytes
) -> None:
    head = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(body)
    with pytest.raises(ApiError, match="HTTP status 400"):
        liar(head + body).request("GET", "/", None, SECONDS)


def test_its_words_are_made_safe_and_short(liar: Callable[[bytes], ApiClient]) -> None:
    body = json.dumps({"fault_message": "\x1b[31m" + "x" * 10_000}).encode()
    head = b"HTTP/1.1 500 no\r\nContent-Length: %d\r\n\r\n" % len(body)
    with pytest.raises(ApiError) as caught:
        liar(head + body).request("GET", "/", None, SECONDS)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_an_answer_that_does_not_come_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = ApiClient(ours)
        with pytest.raises(BackendLost, match="no answer to GET /"):
            client.request("GET", "/", None, 0.1)
        with pytest.raises(BackendLost, match="closed"):
            client.request("GET", "/", None, 0.1)


def test_two_answers_in_one_read_are_two() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        client = ApiClient(ours)
        theirs.sendall(
            b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        )
        assert client.request("PUT", "/x", {}, SECONDS) is None
        assert client.request("GET", "/", None, SECONDS) == {}
        client.close()
