import errno
import io

import msgspec
import pytest

from agentd.client.files import Files
from agentd.client.http.connection import Woken
from agentd.client.http.errors import Unreachable
from agentd.client.http.files import HttpFiles
from agentd.model.errors import InvalidInput, OperationFailed

ENTRY = {"name": "a", "type": "file", "size": 3, "mode": 420, "uid": 1, "gid": 2, "mtime": 5.5}


@pytest.fixture
def files(client):
    return Files(HttpFiles(client), "s")


def test_a_text_that_a_client_writes_is_to_be_encoded(client):
    files = HttpFiles(client)
    for write in (files.write, files.write_tar):
        with pytest.raises(InvalidInput, match="data is of type str") as caught:
            write("s", "/a", "text")
        assert caught.value.remediation == "encode it"


def encoded(value):
    return 200, {}, msgspec.json.encode(value)


def test_a_part_is_asked_for_as_a_range(files, daemon):
    daemon.answers = [(206, {}, b"345")]
    assert files.read("/a b", 3, 3) == b"345"
    (request,) = daemon.requests
    assert request.path == "/v1/sandboxes/s/files?path=/a%20b"
    assert request.headers["Range"] == "bytes=3-5"
    files.read("/a", 3)
    assert daemon.requests[-1].headers["Range"] == "bytes=3-"
    daemon.answers = [(200, {}, b"all")]
    assert files.read("/a") == b"all"
    assert "Range" not in daemon.requests[-1].headers


@pytest.mark.parametrize(
    ("offset", "length", "part"), [(3, 3, b"345"), (8, None, b"89"), (20, None, b""), (0, 2, b"01")]
)
def test_a_server_that_sends_all_of_it(files, daemon, offset, length, part):
    daemon.answers = [(200, {}, b"0123456789")]
    assert files.read("/proc/x", offset, length) == part


def test_beyond_the_end_there_is_nothing(files, daemon):
    daemon.answers = [(416, {}, b'{"code": "invalid_input", "message": "3 bytes"}')]
    assert files.read("/a", 100) == b""


def test_nothing_of_a_file_is_still_of_a_file(files, daemon):
    daemon.answers = [
        (404, {}, b'{"code": "operation_failed", "message": "/a: No such file or directory"}')
    ]
    with pytest.raises(OperationFailed) as caught:
        files.read("/a", 0, 0)
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_that_is_cut_off_is_no_file(files, daemon, chunked):
    def cut(handler):
        handler.send_response(200)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
        else:
            handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"3\r\nabc\r\n" if chunked else b"abc")
        handler.close_connection = True

    daemon.answers = [cut]
    with pytest.raises(Unreachable):
        files.read("/a")


@pytest.mark.parametrize(
    "data", [b"abc", io.BytesIO(b"abc"), iter([b"a", b"", b"bc"]), bytearray(b"abc")]
)
def test_writing(files, daemon, data):
    daemon.answers = [encoded({"size": 3})]
    assert files.write("/a", data, mode=0o755, parents=True) == 3
    (request,) = daemon.requests
    assert (request.method, request.body) == ("PUT", b"abc")
    assert request.path == "/v1/sandboxes/s/files?path=/a&mode=755&parents=true"
    assert request.headers["Idempotency-Key"]


def test_entries_have_their_paths(files, daemon):
    daemon.answers = [encoded([ENTRY])]
    (entry,) = files.list("/dir")
    assert (entry.name, entry.path, entry.size, entry.mtime) == ("a", "/dir/a", 3, 5.5)
    daemon.answers = [encoded(ENTRY)]
    assert files.stat("/dir/a").path == "/dir/a"


@pytest.mark.parametrize("name", ["..", "a/b", ""])
def test_a_name_that_leads_elsewhere_is_refused(files, daemon, name):
    daemon.answers = [encoded([ENTRY | {"name": name}])]
    with pytest.raises(msgspec.ValidationError):
        files.list("/dir")


def test_the_rest(files, daemon):
    daemon.answers = [(204, {}, b"")]
    files.mkdir("/d", parents=True)
    files.move("/a", "/b")
    files.remove("/d", recursive=True)
    made, moved, removed = daemon.requests
    assert msgspec.json.decode(made.body) == {"path": "/d", "mode": 0o755, "parents": True}
    assert msgspec.json.decode(moved.body) == {"path": "/a", "to": "/b"}
    assert (removed.method, removed.path.partition("?")[2]) == ("DELETE", "path=/d&recursive=true")


def events(*blocks):
    def visit(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        for block in blocks:
            handler.wfile.write(block)
        handler.close_connection = True

    return visit


def test_a_watch(files, daemon):
    daemon.answers = [
        events(
            b":\n\n",
            b'event: change\ndata: {"kind": "cre',
            b'ate", "path": "/a"}\n\nevent: other\ndata: 1\n\n',
            b'event: change\r\ndata: {"kind": "delete", "path": "/b"}\r\n\r\n',
        )
    ]
    assert [(c.kind, c.path) for c in files.watch("/")] == [("create", "/a"), ("delete", "/b")]
    assert daemon.requests[0].headers["Accept"] == "text/event-stream"


def test_an_event_is_bounded(files, daemon, monkeypatch):
    monkeypatch.setattr("agentd.client.http.sse.MAX_EVENT", 100)
    daemon.answers = [events(b"data: " + b"x" * 1000)]
    with pytest.raises(Unreachable, match="larger than 100"):
        list(files.watch("/"))


def test_a_tar(files, client, daemon):
    daemon.answers = [(200, {}, b"tar")]
    assert b"".join(files._read_tar("/d")) == b"tar"
    HttpFiles(client).write_tar("s", "/d", iter([b"t", b"ar"]))
    assert (daemon.requests[1].method, daemon.requests[1].body) == ("PUT", b"tar")


def test_woken_is_no_error(files, daemon):
    import os

    read_end, write_end = os.pipe()
    os.write(write_end, b"x")
    daemon.answers = [(200, {}, b"x" * 300_000)]
    with pytest.raises(StopIteration):
        while True:
            pieces = files._read_iter("/a", read_end)
            while True:
                next(pieces)
    os.close(read_end)
    os.close(write_end)
    assert not issubclass(Woken, OSError)  # or it would be taken for a lost connection
