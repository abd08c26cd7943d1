import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from agentd.auth import jwks
from agentd.auth.jwks import FileKeySet, UrlKeySet, check_url, fetch_url, parse
from agentd.model.errors import InvalidInput, Unauthenticated

URL = "https://id.example/jwks"


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """On a busy machine a thread gets its turn in its own time, and none here is to miss it."""
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 120.0)


def key(kid, **more):
    return {"kty": "EC", "kid": kid, "crv": "P-256", "x": "a", "y": "b", **more}


def document(*kids):
    return json.dumps({"keys": [key(kid) for kid in kids]}).encode()


class Server:
    """What a URL answers, when asked; and the time."""

    def __init__(self, *kids):
        self.answer = document(*kids)
        self.asked = 0
        self.now = 0.0

    def fetch(self, url):
        assert url == URL
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def keys(self):
        return UrlKeySet(URL, self.fetch, lambda: self.now)


def kids(found):
    return [k["kid"] for k in found]


def test_keys_are_fetched_once_and_again_when_no_longer_fresh():
    server = Server("a", "b")
    keys = server.keys()
    assert kids(keys.find("a")) == ["a"] and kids(keys.find(None)) == ["a", "b"]
    assert server.asked == 1
    server.now = jwks.FRESH_SECONDS + 1
    server.answer = document("b")
    assert keys.find("a") == [] and server.asked == 2


def test_an_unknown_key_id_is_asked_for_once_however_many_tokens_name_it():
    server = Server("a")
    keys = server.keys()
    keys.find("a")
    server.now = jwks.REFETCH_SECONDS
    server.answer = document("a", "new")
    assert kids(keys.find("new")) == ["new"] and server.asked == 2
    for n in range(100):
        assert keys.find(f"made-up-{n}") == []
    assert server.asked == 2
    server.now *= 2
    assert keys.find("made-up") == [] and server.asked == 3


def test_an_issuer_that_is_down_is_not_asked_for_every_token():
    server = Server()
    server.answer = OSError("down")
    keys = server.keys()
    for _ in range(10):
        with pytest.raises(Unauthenticated, match=r"no keys from https://id.example/jwks: down"):
            keys.find("a")
    assert server.asked == 1


def test_old_keys_hold_for_a_while_when_the_issuer_is_down_and_then_no_longer():
    server = Server("a")
    keys = server.keys()
    keys.find("a")
    server.answer = ValueError("not JSON")
    server.now = jwks.STALE_SECONDS
    assert kids(keys.find("a")) == ["a"] and server.asked == 2
    server.now = jwks.STALE_SECONDS + 1
    with pytest.raises(Unauthenticated, match="not JSON"):
        keys.find("a")


def test_who_comes_while_keys_are_fetched_waits_for_them():
    server = Server("a")
    started, go = threading.Event(), threading.Event()

    def slow(url):
        started.set()
        assert go.wait(120)
        return server.fetch(url)

    keys = UrlKeySet(URL, slow, lambda: server.now)
    found = []
    threads = [threading.Thread(target=lambda: found.append(kids(keys.find("a"))))]
    threads[0].start()
    assert started.wait(120)
    threads += [threading.Thread(target=lambda: found.append(kids(keys.find("a"))))]
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(120)
    assert found == [["a"], ["a"]] and server.asked == 1


def test_a_file_is_read_again_when_it_is_another(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_bytes(document("a"))
    keys = FileKeySet(str(path))
    assert kids(keys.find("a")) == ["a"]
    (tmp_path / "new").write_bytes(document("b"))
    os.replace(tmp_path / "new", path)
    assert keys.find("a") == [] and kids(keys.find("b")) == ["b"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"keys": 1}', b'{"keys": [1]}', None])
def test_a_file_that_breaks_takes_the_old_keys_along(tmp_path, content):
    path = tmp_path / "jwks.json"
    path.write_bytes(document("a"))
    keys = FileKeySet(str(path))
    keys.find("a")
    path.unlink() if content is None else path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="cannot be checked now"):
            keys.find("a")


@pytest.mark.parametrize(
    "unusable",
    [
        {"kty": "oct", "kid": "a", "k": "c2VjcmV0"},
        key("a", use="enc"),
        key("a", key_ops=["sign"]),
        key("a", key_ops="verify"),
        key("a", d="private"),
        {"kid": "a"},
    ],
)
def test_only_public_keys_for_signatures_count(unusable):
    text = json.dumps({"keys": [unusable, key("b", use="sig", key_ops=["verify"])]})
    assert kids(parse(text.encode())) == ["b"]


def test_a_key_set_is_bounded():
    with pytest.raises(ValueError, match="more than 64 keys"):
        parse(document(*(str(n) for n in range(65))))
    with pytest.raises(ValueError, match="bytes"):
        parse(b" " * (jwks.MAX_BYTES + 1))


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/k",
        "file:///etc/passwd",
        "ftp://id.example/k",
        "https://",
        "",
        "id.example",
    ],
)
def test_keys_are_not_taken_from_where_anybody_could_change_them(url):
    with pytest.raises(InvalidInput, match="cannot be trusted"):
        check_url(url)
    with pytest.raises(InvalidInput):
        UrlKeySet(url)


class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/jwks")
            self.end_headers()
        else:
            body = b"x" * (jwks.MAX_BYTES * 2) if self.path == "/huge" else document("a")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def origin():
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_within_bounds_and_without_redirects(origin, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    assert kids(UrlKeySet(origin + "/jwks").find("a")) == ["a"]
    assert len(fetch_url(origin + "/huge")) == jwks.MAX_BYTES + 1
    with pytest.raises(OSError, match="302"):
        fetch_url(origin + "/away")


def test_a_server_that_speaks_no_http_is_an_oserror():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"nonsense\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OSError, match="BadStatusLine"):
            fetch_url(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        thread.join()
