import os
import socket

import msgspec
import pytest

from agentd.client.cli.main import main
from agentd.client.cut import Cut
from agentd.client.http import address
from agentd.client.http import client as clients
from agentd.client.http.client import encoded, segment
from agentd.client.http.connection import Woken
from agentd.client.http.errors import Unreachable
from agentd.model.errors import AgentdError, NotFound

OK = (200, {}, b'{"n": 7}')


class N(msgspec.Struct):
    n: int


def test_a_call(daemon, client):
    daemon.answers = [OK]
    assert client.call("POST", "/v1/x", {"a": 1}, into=N, query={"b": "c d&e"}).n == 7
    (request,) = daemon.requests
    assert (request.method, request.path) == ("POST", "/v1/x?b=c%20d%26e")
    assert msgspec.json.decode(request.body) == {"a": 1}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == "Bearer agd_id_secret"
    assert "Idempotency-Key" not in request.headers


def test_an_error_is_raised_and_the_connection_kept(daemon, client):
    body = b'{"code": "not_found", "message": "no"}'
    daemon.answers = [(404, {}, body), OK]
    with pytest.raises(NotFound, match="no"):
        client.call("GET", "/")
    client.call("GET", "/")
    assert daemon.connections == 1


def test_an_answer_that_does_not_fit(daemon, client):
    daemon.answers = [(200, {}, b'{"n": "seven"}')]
    with pytest.raises(AgentdError, match="same version"):
        client.call("GET", "/", into=N)


@pytest.mark.parametrize("times", [1, 3])
def test_a_lost_connection_is_tried_again_with_the_same_key(daemon, client, drop, times):
    daemon.answers = [*[drop] * times, OK]
    assert client.call("POST", "/", {"a": 1}, into=N, once=True).n == 7
    keys = {request.headers["Idempotency-Key"] for request in daemon.requests}
    assert len(daemon.requests) == times + 1 and len(keys) == 1
    client.call("POST", "/", {"a": 1}, once=True)
    assert daemon.requests[-1].headers["Idempotency-Key"] not in keys


@pytest.mark.parametrize(
    ("method", "options", "sent"),
    [
        ("GET", {}, 4),
        ("DELETE", {}, 4),
        ("POST", {"safe": True}, 4),
        ("POST", {"once": True}, 4),
        ("POST", {}, 1),
    ],
)
def test_what_may_be_sent_again(daemon, client, drop, method, options, sent):
    daemon.answers = [drop]
    with pytest.raises(Unreachable, match="look before you do it again"):
        client.call(method, "/", **options)
    assert len(daemon.requests) == sent


def test_nobody_is_asked_twice_where_nobody_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Cut, "sleep", lambda self, seconds: pytest.fail("waited"))
    client = clients.HttpClient(address.parse(f"unix:{tmp_path}/none"))
    with pytest.raises(Unreachable, match="no daemon answers"):
        client.call("GET", "/")


def test_of_a_socket_that_is_anothers_it_is_told_who_lets_one_reach_it(tmp_path):
    path = f"{tmp_path}/s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.chmod(path, 0)
        tmp_path.chmod(0o755)
        me = os.geteuid()
        os.seteuid(me or 65534)  # root may reach all
        try:
            with pytest.raises(Unreachable) as caught:
                clients.HttpClient(address.parse(f"unix:{path}")).call("GET", "/")
        finally:
            os.seteuid(me)
    assert caught.value.cause == "Permission denied"
    assert "group and mode of its [[listen]]" in caught.value.remediation


def test_an_answer_that_is_cut_off_is_asked_for_again(daemon, client):
    def cut(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.close_connection = True

    daemon.answers = [cut, OK]
    assert client.call("GET", "/", into=N).n == 7


def test_an_upload_in_pieces(daemon, client):
    daemon.answers = [OK]
    pieces = (b"x" * 100_000 for _ in range(10))
    assert client.upload("/f", pieces, {"path": "/a"}, into=N).n == 7
    (request,) = daemon.requests
    assert request.body == b"x" * 1_000_000
    assert request.headers["Idempotency-Key"]


def test_an_upload_of_bytes_is_sent_again_and_one_of_pieces_is_not(daemon, client, drop):
    daemon.answers = [drop, OK]
    assert client.upload("/f", b"abc", {}, into=N).n == 7
    daemon.answers = [drop, OK]
    with pytest.raises(Unreachable):
        client.upload("/f", iter([b"abc"]), {})
    assert [request.body for request in daemon.requests] == [b"abc"] * 3


@pytest.mark.parametrize("error", [OSError("disk"), ZeroDivisionError()])
def test_what_goes_wrong_in_the_callers_pieces_is_the_callers(daemon, client, error):
    def pieces():
        yield b"x"
        raise error

    daemon.answers = [OK]
    with pytest.raises(type(error)):
        client.upload("/f", pieces(), {})


def test_a_refusal_amid_an_upload_is_read(daemon, client):
    def early(handler):  # before the body has come
        body = b'{"code": "not_found", "message": "early"}'
        handler.wfile.write(b"HTTP/1.1 404 No\r\nContent-Length: %d\r\n" % len(body))
        handler.wfile.write(b"Connection: close\r\n\r\n" + body)
        handler.close_connection = True

    daemon.answers = [early]
    daemon.RequestHandlerClass = type(
        "Hasty", (daemon.RequestHandlerClass,), {"_body": lambda self: b""}
    )
    with pytest.raises(NotFound, match="early"):
        client.upload("/f", (b"x" * 65536 for _ in range(200)), {})


def test_a_wait_for_an_answers_bytes_can_be_ended(daemon, client):
    import os
    import threading

    going = threading.Event()

    def slowly(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"12345")
        going.wait(120)

    daemon.answers = [slowly]
    read_end, write_end = os.pipe()
    with pytest.raises(Woken), client.open("GET", "/", wake=read_end) as response:
        assert response.read1(100) == b"12345"
        os.write(write_end, b"x")
        response.read1(100)
    going.set()
    os.close(read_end)
    os.close(write_end)


def test_queries_and_segments():
    assert encoded({}) == encoded({"a": None}) == ""
    assert encoded({"a": True, "b": 5, "c": None}) == "?a=true&b=5"
    assert encoded([("l", "a=b"), ("l", "c")]) == "?l=a%3Db&l=c"
    assert encoded({"path": "/xé y"}) == "?path=/x%C3%A9%20y"
    assert segment("..keys") == "%2E%2Ekeys"
    assert segment("sbx-abc") == "sbx-abc"


@pytest.mark.parametrize(
    "words",
    [
        *(["inspect", ""], ["kill", ""], ["exec", "", "--", "id"], ["renew", "", "1h"]),
        *(["logs", "sbx-abc", ""], ["attach", "sbx-abc", ""]),  # and not the latest command
    ],
)
def test_an_empty_id_is_told_as_one(words, monkeypatch, capsys, tmp_path):
    """As of ``"$box"`` where box is not set: the daemon spoke of its paths."""
    monkeypatch.setenv("AGENTD_URL", f"unix:{tmp_path}/none.sock")
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"agentd {words[0]}: an empty id names nothing (is a variable of it unset?)\n"
    )


def test_one_client_for_all_who_ask_the_same_daemon(daemon):
    where = address.parse(f"unix:{daemon.server_address}")
    daemon.answers = [OK]
    first, second = clients.shared(where), clients.shared(where)
    assert first is second
    first.call("GET", "/")
    clients.release(first)
    first.call("GET", "/")
    clients.release(first)
    assert daemon.connections == 1


def test_one_connection_rests_for_who_comes_next(daemon):
    where = address.parse(f"unix:{daemon.server_address}")
    daemon.answers = [OK]
    client = clients.shared(where)
    with client.open("GET", "/") as answer:
        client.call("GET", "/")
        answer.read()
    clients.release(client)
    assert daemon.connections == 2
    assert len(client.pool._idle) == 1

    again = clients.shared(where)
    again.call("GET", "/")
    clients.release(again)
    assert again is client
    assert daemon.connections == 2

    clients.release(clients.shared(address.parse("unix:/nowhere")))
    assert client.pool._idle == [], "one rests, of all"
    third = clients.shared(where)
    assert third is not client
    clients.release(third)
