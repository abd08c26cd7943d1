"""Files up and down, whole and in part."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator

import pytest
from tests.unit.ingest.fake import until
from tests.unit.ingest.fake_nouns import FakeFiles
from tests.unit.ingest.harness import Running, read_all, sse

from agentd.model.api import ChangeView


def _files(id_: str, rest: str = "") -> str:
    return f"/v1/sandboxes/{id_}/files{rest}"


def test_up_and_down(running: Running) -> None:
    id_ = running.sandbox()
    data = bytes(range(256)) * 4096
    put = running.ask("PUT", _files(id_, "?path=/a%20b&mode=0755&parents=true"), data)
    assert (put.status, put.json) == (200, {"size": len(data)})
    got = running.ask("GET", _files(id_, "?path=/a%20b"))
    assert got.body == data
    assert got.headers["content-length"] == str(len(data))
    head = running.ask("HEAD", _files(id_, "?path=/a%20b"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(data))


@pytest.mark.parametrize(
    ("asked", "status", "body", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=7-99", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-30", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=1-2,4-5", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(
    running: Running, asked: str, status: int, body: bytes, content_range: str | None
) -> None:
    id_ = running.sandbox()
    got = running.ask("GET", _files(id_, "?path=/etc/motd"), None, {"Range": asked})
    assert (got.status, got.body, got.headers["content-range"]) == (status, body, content_range)


def test_a_range_behind_the_end(running: Running) -> None:
    id_ = running.sandbox()
    for asked in ("bytes=10-", "bytes=-0"):
        got = running.ask("GET", _files(id_, "?path=/etc/motd"), None, {"Range": asked})
        assert (got.status, got.code) == (416, "range_not_satisfiable")


def test_what_says_that_it_is_empty_may_not_be(running: Running) -> None:
    """As /proc does."""
    id_ = running.sandbox()
    running.service.sandboxes[id_].files["/proc/version"] = b"Linux"
    assert running.ask("GET", _files(id_, "?path=/proc/version")).body == b"Linux"


def test_a_download_that_breaks_is_not_taken_for_whole(running: Running) -> None:
    id_ = running.sandbox()
    running.service.sandboxes[id_].files["/big"] = bytes(1 << 20)
    running.service.failing_reads = True
    with contextlib.closing(running.connect()) as connection:
        connection.request("GET", _files(id_, "?path=/big"))
        # Cut amid the body, or before a byte of it.
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            connection.getresponse().read()


def test_errors_of_files(running: Running) -> None:
    id_ = running.sandbox()
    assert running.ask("GET", _files(id_, "?path=/none")).status == 404
    assert running.ask("PUT", _files(id_, "?path=/full"), b"x").status == 507
    assert running.ask("GET", _files(id_)).code == "invalid_input"
    assert running.ask("GET", _files(id_, "?path=%00")).code == "invalid_input"
    for mode in ("8", "", "17777777", "-1", "0o7"):
        assert running.ask("PUT", _files(id_, f"?path=/x&mode={mode}"), b"").status == 400


def test_the_rest(running: Running) -> None:
    id_ = running.sandbox()
    assert running.ask("GET", _files(id_, "/list?path=/")).json[0]["name"] == "/etc/motd"
    assert running.ask("GET", _files(id_, "/stat?path=/etc/motd")).json["size"] == 10
    assert running.ask("POST", _files(id_, "/mkdir"), {"path": "/d"}).status == 204
    move = {"path": "/etc/motd", "to": "/m"}
    assert running.ask("POST", _files(id_, "/move"), move).status == 204
    assert running.ask("DELETE", _files(id_, "?path=/m&recursive=true")).status == 204
    assert running.ask("DELETE", _files(id_, "?path=/m")).status == 404


def test_tar_both_ways(running: Running) -> None:
    id_ = running.sandbox()
    assert running.ask("GET", _files(id_, "/tar?path=/w")).body == b"tar of /w"
    assert running.ask("PUT", _files(id_, "/tar?path=/w"), b"a tar").status == 204
    assert running.service.sandboxes[id_].files["/w#tar"] == b"a tar"


def test_watch(running: Running) -> None:
    id_ = running.sandbox()
    sandbox = running.service.sandboxes[id_]
    assert running.ask("GET", _files(id_, "/watch?path=/none")).status == 404
    with contextlib.closing(running.connect()) as connection:
        connection.request("GET", _files(id_, "/watch?path=/etc/motd"))
        response = connection.getresponse()
        until(lambda: len(sandbox.watchers) == 1)
        sandbox.changed("modified", "/etc/motd")
        event = next(sse(response))
        assert event["event"] == "change"
        assert json.loads(event["data"]) == {"kind": "modified", "path": "/etc/motd"}
        response.close()
    until(lambda: not sandbox.watchers)


def test_an_upload_that_breaks_off_leaves_nothing(running: Running) -> None:
    id_ = running.sandbox()
    head = f"PUT {_files(id_, '?path=/half')} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with running.raw() as client:
        client.sendall(head.encode() + b"x" * 500)
        until(lambda: running.service.calls.count("write_file") == 1)
    until(lambda: running.server.connections == 0)
    assert "/half" not in running.service.sandboxes[id_].files


def test_an_upload_in_chunks(running: Running) -> None:
    id_ = running.sandbox()
    head = f"PUT {_files(id_, '?path=/c')} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    got = running.say(head.encode() + b"Connection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 200 ") and got.endswith(b'{"size":5}')
    assert running.service.sandboxes[id_].files["/c"] == b"abcde"


def test_a_client_may_wait_for_100_continue(running: Running) -> None:
    id_ = running.sandbox()
    head = (
        f"PUT {_files(id_, '?path=/e')} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        "Expect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    with running.raw() as client:
        client.sendall(head.encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"ok")
        assert read_all(client).endswith(b'{"size":2}')


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_an_upload_with_a_key_is_done_once(running: Running, size: int) -> None:
    id_ = running.sandbox()
    headers = {"Idempotency-Key": "up"}
    path = _files(id_, "?path=/once")
    data = b"z" * size
    first = running.ask("PUT", path, data, headers)
    assert first.json == {"size": size}
    if size < 1 << 20:  # what is larger is cut off when it is not wanted
        again = running.ask("PUT", path, data, headers)
        assert (again.json, again.headers["idempotency-replayed"]) == ({"size": size}, "true")
        assert running.ask("PUT", path, b"other bytes", headers).status == 422
    assert running.service.calls.count("write_file") == 1


def test_a_watch_that_a_shutdown_ends_amid_changes_is_told_so(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in which something changes all the time was cut off, as if its client were too slow."""
    heard = threading.Event()

    def changing(*_: object, **__: object) -> Iterator[ChangeView]:
        while not heard.wait(0.001):
            yield ChangeView(kind="modified", path="/a")

    monkeypatch.setattr(FakeFiles, "watch", changing)
    with running.raw() as client:
        at = _files(running.sandbox(), "/watch?path=/a")
        client.sendall(f"GET {at} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.recv(12) == b"HTTP/1.1 200"
        running.begin_to_end(drain=100)
        told = read_all(client)
        heard.set()
    assert b"event: error" in told and b'"draining"' in told


def test_a_tar_that_breaks_at_once_is_an_error(running: Running) -> None:
    got = running.ask("GET", _files(running.sandbox(), "/tar?path=/broken/0"))
    assert (got.status, got.json["message"]) == (400, "it broke")


@pytest.mark.parametrize("size", [1 << 18, 5 << 20])
def test_one_that_breaks_later_says_why_before_it_is_cut(running: Running, size: int) -> None:
    """To a client that reads slowly, too: what it has not read yet is not thrown away."""
    connection = running.connect()
    with contextlib.closing(connection):
        connection.request("GET", _files(running.sandbox(), f"/tar?path=/broken/{size}"))
        answer = connection.getresponse()
        assert answer.status == 200
        data = b""
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            while piece := answer.read1(100_000):
                data += piece
        assert data.endswith(b"why it broke")
        assert len(data) == len(f"tar of /broken/{size}why it broke") + size
