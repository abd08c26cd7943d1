"""What a program asked through a terminator, recorded and answered again, byte by byte."""

import base64
import contextlib
import errno
import io
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.captured import eventually
from tests.unit.egress.terminator.world import (
    HOST,
    JudgedProgram,
    Judging,
    Serve,
    judging,
    read_head,
)

from agentd.egress import cassettes, terminating
from agentd.egress.cassettes import playable
from agentd.egress.terminator.recording import (
    LEFT_OUT,
    MAX_OF_ONE,
    MAX_TOGETHER,
    CassetteRoom,
    CassetteWriter,
)
from agentd.model import cassette
from agentd.model.cassette import Cassette, RecordedBody, RecordedExchange
from agentd.model.errors import InvalidInput, Refused

GET = f"GET /v1/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n"
CLOSE = GET.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
RECORD, REPLAY = ("record", HOST), ("replay", HOST)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judging]:
    with judging(tmp_path_factory.mktemp("host")) as made:
        yield made


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[Judging]:
    """For those who kill what serves it."""
    tmp_path.chmod(0o755)
    with judging(tmp_path) as made:
        yield made


def answering(*answers: bytes) -> Serve:
    """A host that gives these one after the other, over any number of connections."""
    left = list(answers)

    def serve(sock: socket.socket) -> None:
        while left and read_head(sock):
            sock.sendall(left.pop(0))

    return serve


def tape(it: JudgedProgram) -> Cassette:
    assert it.admitted is not None
    return cassette.parse(it.admitted.recorded())


def recorded(world: Judging, serve: Serve, *said: str) -> bytes:
    """The cassette of a program that says these, each over a connection of its own."""
    with world.program(serve, RECORD) as it:
        for each in said:
            it.ask(f"once({each!r})")
        assert it.admitted is not None
        return it.admitted.recorded()


def replayed(world: Judging, data: bytes, said: Sequence[str]) -> list[str]:
    """What each is answered; the host would say nothing."""
    with world.program(lambda _: None, REPLAY) as it:
        assert it.admitted is not None
        it.admitted.play(playable(data)[0])
        return [it.ask(f"once({each!r})") for each in said]


def error(answer: str) -> dict[str, Any]:
    head, _, body = answer.partition("\r\n\r\n")
    assert " 403 " in head.partition("\r\n")[0]
    found: dict[str, Any] = json.loads(body)["error"]
    return found


def file(*exchanges: RecordedExchange) -> bytes:
    return cassette.joined(map(cassette.line, exchanges), 0)


def test_the_same_bytes_are_answered_in_their_order_and_the_last_again(world: Judging) -> None:
    first = b"HTTP/1.1 200 Fine\r\nDate: Tue, 1 Jan 2030 00:00:00 GMT\r\nContent-Length: 1\r\n\r\n1"
    second = first.replace(b"\r\n\r\n1", b"\r\n\r\n2")
    data = recorded(world, answering(first, second), CLOSE, CLOSE)
    one, two, *more = replayed(world, data, [CLOSE] * 4)
    assert one.startswith("HTTP/1.1 200 Fine\r\ndate: Tue, 1 Jan 2030 00:00:00 GMT\r\n")
    assert (one[-1], two[-1]) == ("1", "2")
    assert more == [two, two]


def test_a_connection_is_kept_and_a_body_that_differs_is_told(world: Judging) -> None:
    post = f"POST /v1/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 3\r\n\r\n"

    def serve(sock: socket.socket) -> None:
        for _ in range(2):
            read_head(sock)
            sock.recv(3)
            sock.sendall(OK)

    with world.program(serve, RECORD) as it:
        for body in ("abc", "abd"):
            it.ask(f"begin() if not kept else 0, say(0, {post + body!r})")
            assert it.ask("until(0, 'ok')").startswith("HTTP/1.1 200")
        assert it.admitted is not None
        data = it.admitted.recorded()
    with world.program(lambda _: None, REPLAY) as it:
        assert it.admitted is not None
        it.admitted.play(playable(data)[0])
        it.ask("begin()")
        for body in ("abd", "abc"):
            it.ask(f"say(0, {post + body!r})")
            assert it.ask("until(0, 'ok')").startswith("HTTP/1.1 200")
        it.ask(f"say(0, {post + 'xyz'!r})")
        told = error(it.ask("rest(0)"))
        assert told["code"] == "not_recorded"
        assert "the cassette has POST api.example.com:443/v1/x with another body" in told["message"]
        assert "record" in told["remediation"]
        (denied,) = [row for row in it.requests() if not row["allowed"]]
        assert denied["reason"].endswith("with another body")


def test_what_it_was_not_asked_is_named(world: Judging) -> None:
    data = recorded(world, answering(OK), CLOSE)
    other = CLOSE.replace("GET /v1/x", "DELETE /v1/y?z=1")
    (told,) = map(error, replayed(world, data, [other]))
    assert "the cassette has no DELETE api.example.com:443/v1/y?z=1" in told["message"]


def test_what_carries_credentials_is_one_word(world: Judging) -> None:
    answer = OK.replace(
        b"\r\n\r\n", b"\r\nSet-Cookie: sid=s3cret; Path=/\r\nX-Api-Key: s3cret\r\n\r\n"
    )
    said = CLOSE.replace(
        "\r\n\r\n",
        "\r\nAuthorization: Bearer s3cret\r\nCookie: sid=s3cret\r\nX-Auth-Token: s3cret\r\n"
        "Traceparent: 00-1\r\nAccept: text/plain\r\n\r\n",
    )
    data = recorded(world, answering(answer), said)
    assert b"s3cret" not in data and b"traceparent" not in data
    (exchange,) = cassette.parse(data).exchanges
    assert dict(exchange.headers) == {
        "authorization": "redacted",
        "cookie": "redacted",
        "x-auth-token": "redacted",
        "accept": "text/plain",
    }
    assert ("set-cookie", "sid=redacted; Path=/") in exchange.answer_headers
    assert ("x-api-key", "redacted") in exchange.answer_headers


def test_hosts_are_asked_for_what_can_be_read(world: Judging) -> None:
    heads: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        heads.append(read_head(sock))
        sock.sendall(OK)

    recorded(world, serve, CLOSE.replace("\r\n\r\n", "\r\nAccept-Encoding: gzip, br\r\n\r\n"))
    assert b"gzip" not in heads[0] and b"accept-encoding: identity" in heads[0].lower()


def test_a_stream_of_events_is_what_came(world: Judging) -> None:
    events = b"3\r\na\n\n\r\n3\r\nb\n\n\r\n0\r\n\r\n"
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    data = recorded(world, answering(head + events), CLOSE)
    (exchange,) = cassette.parse(data).exchanges
    assert exchange.answer.text == "a\n\nb\n\n"
    (answer,) = replayed(world, data, [CLOSE])
    assert answer.endswith("\r\n\r\n6\r\na\n\nb\n\n\r\n0\r\n\r\n")


def test_bytes_that_are_no_text_come_back_as_they_were(world: Judging) -> None:
    body = bytes(range(256))
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 256\r\n\r\n" + body
    data = recorded(world, answering(answer), CLOSE)
    (exchange,) = cassette.parse(data).exchanges
    assert exchange.answer.base64 == base64.b64encode(body).decode()
    (told,) = replayed(world, data, [CLOSE])
    assert told.encode("latin-1").endswith(b"\r\n\r\n" + body)


def test_an_answer_that_was_broken_off_is_so_again(world: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(OK.replace(b"Length: 2", b"Length: 9"))
        sock.shutdown(socket.SHUT_RDWR)

    with world.program(serve, RECORD) as it:
        it.ask(f"begin(), say(0, {CLOSE!r})")
        assert it.ask("until(0, 'ok')").endswith("ok")
        eventually(lambda: [each.unrecorded for each in tape(it).exchanges] == [""])
        assert it.admitted is not None
        data = it.admitted.recorded()
    (exchange,) = cassette.parse(data).exchanges
    assert exchange.broken and exchange.answer.text == "ok"
    (told,) = replayed(world, data, [CLOSE])
    assert "content-length: 9" in told and told.endswith("\r\n\r\nok")


def test_a_body_that_is_too_large_is_told_and_refused_by_name(world: Judging) -> None:
    size = cassette.MAX_BODY + 1

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        sock.sendall(b"x" * size)

    with world.program(serve, RECORD) as it:
        assert it.ask(f"len(once({CLOSE!r}))") > size
        (row,) = it.requests()
        assert row["allowed"]
        assert row["reason"] == f"not recorded: its answer is over {size - 1} bytes"
        assert it.admitted is not None
        data = it.admitted.recorded()
    assert len(data) < 1000
    (told,) = map(error, replayed(world, data, [CLOSE]))
    why = f"it was not recorded: its answer is over {size - 1} bytes"
    assert told["code"] == "not_recorded" and why in told["message"]


def test_a_websocket_works_and_is_told_as_not_recorded(world: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n")
        sock.sendall(b"Connection: Upgrade\r\n\r\nfirst")
        sock.recv(1)

    ask = GET.replace("\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    with world.program(serve, RECORD) as it:
        it.ask(f"begin(), say(0, {ask!r})")
        assert it.ask("until(0, 'first')").startswith("HTTP/1.1 101")
        assert [each.unrecorded for each in tape(it).exchanges] == ["it was still going on"]
        it.ask("kept[0].close()")
        end = ["it became a WebSocket"]
        eventually(lambda: [each.unrecorded for each in tape(it).exchanges] == end)


def test_what_is_no_http_is_refused_while_it_is_recorded(world: Judging) -> None:
    with world.program(answering(OK), RECORD) as it:
        assert it.ask("once('SSH-2.0-x\\r\\n\\r\\n')").startswith("HTTP/1.1 400")
        assert tape(it).exchanges == ()


@pytest.mark.parametrize("stays", [True, False])
def test_who_waits_for_a_host_that_speaks_first_is_refused_while_it_is_recorded(
    world: Judging, stays: bool
) -> None:
    """As that of a database does, whose client says nothing before it."""

    def greet(sock: socket.socket) -> None:
        sock.sendall(b"I\0\0\0\n8.0.36\0")
        if stays:
            sock.recv(1)

    with world.program(greet, ("record", f"{HOST}:3306"), plain=True) as it:
        assert it.ask(f"talk({HOST!r}, 3306)") == errno.ECONNRESET
        (row,) = it.rows()
        assert (row["allowed"], row["ended"]) == (False, True)
        assert "its host speaks first" in row["reason"]


def test_a_host_that_ends_its_connection_is_none_that_speaks_first(world: Judging) -> None:
    with world.program(lambda _: None, ("record", f"{HOST}:3306"), plain=True) as it:
        it.ask(f"keep({HOST!r}, 3306)")
        it.ask("sleep(0.3)")  # it has ended it by then
        it.ask(f"kept[0].send({GET.encode()!r})")
        it.ask("kept[0].recv(100)")
        eventually(lambda: all(row["ended"] for row in it.rows()))
        assert not any("speaks first" in row["reason"] for row in it.rows())


def answered(it: JudgedProgram, said: str, end: str) -> None:
    """By the next terminator, once it is there."""

    def again() -> bool:
        found = it.ask(f"once({said!r})")
        return isinstance(found, str) and found.endswith(end)

    eventually(again)


def killed(world: Judging) -> None:
    before = world.keeper.terminating.pid
    os.kill(before, signal.SIGKILL)
    eventually(lambda: world.keeper.terminating.pid not in (0, before))


def test_the_next_terminator_goes_on_behind_the_last(own_world: Judging) -> None:
    world, other = own_world, CLOSE.replace("/v1/x", "/v1/other")
    with world.program(answering(OK, OK, OK), RECORD) as it:
        it.ask(f"once({CLOSE!r})")
        assert len(tape(it).exchanges) == 1
        killed(world)
        answered(it, other, "ok")
        assert [each.target for each in tape(it).exchanges] == ["/v1/x", "/v1/other"]
        assert it.admitted is not None
        data = it.admitted.recorded()
        # And counts what it leaves out of one that is full.
        shared = world.keeper.terminating._recordings[it.admitted.id]
        shared.write(LEFT_OUT * cassette.MAX_EXCHANGES)
        killed(world)
        answered(it, other, "ok")
        assert len(tape(it).exchanges) == 2
        assert tape(it).left_out == cassette.MAX_EXCHANGES + 1
        assert it.requests()[-1]["reason"] == "not recorded: the cassette is full"
    with world.program(lambda _: None, REPLAY) as it:
        assert it.admitted is not None
        it.admitted.play(playable(data)[0])
        killed(world)
        answered(it, other, "ok")


def test_one_that_is_put_in_replaces_the_one_before(world: Judging) -> None:
    def made(body: bytes) -> bytes:
        headers = (("content-length", "1"),)
        return file(
            RecordedExchange(
                "GET",
                HOST,
                443,
                "/v1/x",
                status=200,
                answer_headers=headers,
                answer=RecordedBody.of(body),
            )
        )

    with world.program(lambda _: None, REPLAY) as it:
        assert it.admitted is not None
        assert error(it.ask(f"once({CLOSE!r})"))["code"] == "no_cassette"
        for body in (b"one", b"another"):  # longer than its length says: that is made anew
            it.admitted.play(playable(made(body))[0])
            assert it.ask(f"once({CLOSE!r})").endswith(
                f"length: {len(body)}\r\nConnection: close\r\n\r\n{body.decode()}"
            )
        with pytest.raises(Refused, match="records nothing"):
            it.admitted.recorded()


def test_what_is_still_going_on_is_told(world: Judging) -> None:
    heard, go_on = threading.Event(), threading.Event()

    def serve(sock: socket.socket) -> None:
        head = read_head(sock)
        if b"/v1/slow" in head:
            heard.set()
            go_on.wait(60)
        sock.sendall(OK)

    slow = CLOSE.replace("/v1/x", "/v1/slow?a=b")
    with world.program(serve, RECORD) as it:
        it.ask(f"begin(), say(0, {slow!r})")
        it.ask(f"once({CLOSE!r})")
        assert heard.wait(60)
        told = [(each.target, each.unrecorded) for each in tape(it).exchanges]
        assert told == [("/v1/x", ""), ("/v1/slow?a=b", "it was still going on")]
        go_on.set()
        it.ask("rest(0)")
        told = [(each.target, each.unrecorded) for each in tape(it).exchanges]
        assert told == [("/v1/x", ""), ("/v1/slow?a=b", "")]


def test_what_a_terminator_wrote_that_is_no_exchange_is_counted() -> None:
    exchange = RecordedExchange("GET", HOST, 443, "/", status=200)
    with cassettes.blank() as shared:
        shared.write(cassette.line(exchange) + LEFT_OUT + b"\n")
        shared.write(b'{"method": "GET"')  # half a line, as of one that was killed
        found = cassette.parse(cassettes.recorded(shared))
        assert (found.exchanges, found.left_out) == ((exchange,), 2)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(shared.fileno(), cassette.MAX_CASSETTE + 1)


def test_what_all_take_together_is_bounded_and_given_back(tmp_path: Path) -> None:
    room, size = CassetteRoom(), cassette.MAX_CASSETTE - (2 << 20)
    exchange = RecordedExchange("GET", HOST, 443, "/", body=RecordedBody(text="x" * (3 << 20)))
    with contextlib.ExitStack() as files:
        paths = [tmp_path / str(n) for n in range(MAX_TOGETHER // size + 1)]
        opened = [files.enter_context(io.FileIO(path, "w")) for path in paths]
        *writers, last = [CassetteWriter(file, (0, 0), room) for file in opened]
        assert all(writer.take(size) for writer in writers)
        assert not last.take(size)
        for writer in writers:
            writer.end()
            writer.give(size)  # by what is open still
        assert room.left("") == MAX_TOGETHER
        assert last.add(exchange) and room.left("") < MAX_TOGETHER - (3 << 20)
        last.count_for("somebody")
        assert room.left("somebody") < MAX_OF_ONE - (3 << 20) and room.left("other") == MAX_OF_ONE
        last.end()
        assert room.left("") == MAX_TOGETHER and room.left("somebody") == MAX_OF_ONE


def test_what_all_are_played_is_bounded(world: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    data = playable(file())[0]
    monkeypatch.setattr(terminating, "MAX_TOGETHER", 2 * len(data) - 1)
    with world.program(lambda _: None, REPLAY) as it, world.program(lambda _: None, REPLAY) as more:
        assert it.admitted is not None and more.admitted is not None
        for _ in range(2):  # in place of the one before
            it.admitted.play(data)
        with pytest.raises(Refused, match="of all sandboxes would take over"):
            more.admitted.play(data)
        it.admitted.close()
        more.admitted.play(data)


def test_what_would_make_it_unreadable_is_told_in_its_place(world: Judging) -> None:
    """A header that h11 takes and no cassette may have, of any host that a sandbox may reach."""
    odd = OK.replace(b"\r\n\r\n", b"\r\nX-Odd: a\x01b\r\n\r\n")
    trailer = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Odd: \x1f\r\n\r\n"
    )
    with world.program(answering(odd, trailer, OK), RECORD) as it:
        for _ in range(3):
            assert it.ask(f"once({CLOSE!r})").startswith("HTTP/1.1 200")
        why = "its answer has the header 'x-odd', which a cassette cannot have"
        assert [each.unrecorded for each in tape(it).exchanges] == [why, why, ""]
        assert it.requests()[0]["reason"] == f"not recorded: {why}"


def test_what_goes_on_finds_no_more_room_than_there_is(own_world: Judging) -> None:
    def serve(sock: socket.socket) -> None:
        if b"/v1/waits" not in read_head(sock):
            sock.sendall(OK)
        with contextlib.suppress(OSError):
            sock.recv(1)

    waits = GET.replace("/v1/x", "/v1/waits")
    with own_world.program(serve, RECORD) as it:
        it.ask(f"once({CLOSE!r})")
        assert it.admitted is not None
        (one,) = tape(it).exchanges
        shared = own_world.keeper.terminating._recordings[it.admitted.id]
        shared.write(cassette.line(one) * (cassette.MAX_EXCHANGES - 1))
        killed(own_world)
        eventually(lambda: it.ask(f"once({CLOSE!r})") is not None)
        it.ask(f"begin(), say(0, {waits!r})")
        eventually(lambda: it.ask(f"say(begin(), {waits!r})") is None and tape(it).left_out > 1)
        assert len(tape(it).exchanges) == cassette.MAX_EXCHANGES


def test_a_cookie_without_a_name_is_no_name(world: Judging) -> None:
    for said, kept in (
        ("s3cret; Path=/; Secure", "redacted; Path=/; Secure"),
        ("=s3cret", "=redacted"),
        (
            "a=s3cret=; Expires=Wed, 1 Jan 31 00:00 GMT",
            "a=redacted; Expires=Wed, 1 Jan 31 00:00 GMT",
        ),
        ("a=s3cret; Path=/, b=s3cret; HttpOnly", "a=redacted; HttpOnly"),
        ("a=s3cret; s3cret", "a=redacted"),
    ):
        answer = OK.replace(b"\r\n\r\n", f"\r\nSet-Cookie: {said}\r\n\r\n".encode())
        (exchange,) = cassette.parse(recorded(world, answering(answer), CLOSE)).exchanges
        assert ("set-cookie", kept) in exchange.answer_headers


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (b'"x": ' + b"[" * 100_000 + b"]" * 100_000, "line 1 is not that of a cassette"),
        (None, "line 2 has the reason"),
    ],
)
def test_what_is_wrong_in_one_is_told(first: bytes | None, told: str) -> None:
    odd = RecordedExchange("GET", HOST, 443, "/", status=200, reason="OK\r\nX-Y: \u1234")
    data = file(odd)
    if first is not None:
        data = data.replace(b'"version": 1', b'"version": 1, ' + first)
        data = data.replace(b'"version":1', b'"version":1,' + first)
    with pytest.raises(InvalidInput, match=told):
        playable(data)


def test_what_is_played_is_changed_by_nobody() -> None:
    with cassettes.holding(b"a tape") as file:
        for change in (
            lambda: os.pwrite(file.fileno(), b"a lie", 0),
            lambda: os.ftruncate(file.fileno(), 0),
            lambda: os.ftruncate(file.fileno(), 100),
        ):
            with pytest.raises(PermissionError):
                change()
        assert os.pread(file.fileno(), 100, 0) == b"a tape"


def test_a_cassette_takes_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    with io.FileIO(tmp_path / "tape", "w") as file:
        writer = CassetteWriter(file, (0, 0), CassetteRoom())
        assert not writer.take(cassette.MAX_CASSETTE)
        assert writer.take(cassette.MAX_CASSETTE // 2)
        assert not writer.take(cassette.MAX_CASSETTE // 2)
