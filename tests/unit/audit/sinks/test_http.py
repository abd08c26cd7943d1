import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from agentd.audit.record import GENESIS, entry, seal
from agentd.audit.sinks.http import HttpSink, OtlpSink
from agentd.audit.sinks.port import Rejected, Unsent
from agentd.model.audit import Event, Kind

LINE = seal(1, GENESIS, entry(Event(kind=Kind.START, principal="uid:1"), 1.000002).body)[0]


class Server(HTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, bytes]] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Server)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append(
            (self.path, {name.lower(): text for name, text in self.headers.items()}, body)
        )
        status, answer = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def test_a_batch_is_one_post_of_json_lines(server: Server) -> None:
    server.answers = [(204, b"")]
    sink = HttpSink(server.url + "/in", {"authorization": "Bearer x"})
    sink.send([LINE, LINE])
    sink.close()
    (path, headers, body) = server.requests[0]
    assert path == "/in" and body == LINE * 2 and headers["authorization"] == "Bearer x"
    assert headers["content-type"] == "application/x-ndjson"


def test_user_and_password_of_the_address_go_as_a_header(server: Server) -> None:
    server.answers = [(204, b"")]
    sink = HttpSink(server.url.replace("//", "//me:s%3Ae%40@") + "/in")
    sink.send([LINE])
    sink.close()
    (path, headers, _) = server.requests[0]
    assert path == "/in" and headers["authorization"] == "Basic bWU6czplQA=="
    assert "@" not in headers["host"]


@pytest.mark.parametrize(
    "url", ["http://a b/", "nothing", "ftp://127.0.0.1/", "http://\xe4..invalid/"]
)
def test_an_address_that_is_none_is_unsent(url: str) -> None:
    sink = HttpSink(url)
    with pytest.raises(Unsent):
        sink.send([LINE])
    sink.close()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_tried_again(server: Server, status: int) -> None:
    server.answers = [(status, b"")]
    sink = HttpSink(server.url)
    with pytest.raises(Unsent, match=str(status)):
        sink.send([LINE])
    sink.close()


@pytest.mark.parametrize("status", [301, 400, 401, 413])
def test_what_will_never_pass_is_dropped_and_no_redirect_is_followed(
    server: Server, status: int
) -> None:
    server.answers = [(status, b"")]
    sink = HttpSink(server.url)
    with pytest.raises(Rejected) as caught:
        sink.send([LINE, LINE])
    assert caught.value.count == 2
    sink.close()


def test_nobody_is_there() -> None:
    sink = HttpSink("http://127.0.0.1:1/")
    with pytest.raises(Unsent):
        sink.send([LINE])
    sink.close()


def test_the_environment_does_not_choose_a_proxy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    server.answers = [(200, b"")]
    sink = HttpSink(server.url)
    sink.send([LINE])
    sink.close()


def test_otlp_logs(server: Server) -> None:
    server.answers = [(200, b'{"partialSuccess":{"rejectedLogRecords":"1"}}'), (200, b"{}")]
    sink = OtlpSink(server.url + "/", resource={"host.name": "here"})
    with pytest.raises(Rejected) as caught:
        sink.send([LINE, LINE])
    assert caught.value.count == 1
    sink.send([LINE])
    sink.close()
    (path, headers, body) = server.requests[1]
    assert path == "/v1/logs" and headers["content-type"] == "application/json"
    (resource,) = json.loads(body)["resourceLogs"]
    names = {
        each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]
    }
    assert names == {"service.name": "agentd", "host.name": "here"}
    (log,) = resource["scopeLogs"][0]["logRecords"]
    assert log["timeUnixNano"] == "1000002000" and log["severityNumber"] == 9
    assert log["body"]["stringValue"].encode() + b"\n" == LINE
    assert _values(log["attributes"]) == {
        "event.name": "agentd.start",
        "agentd.audit.seq": "1",
        "agentd.principal": "uid:1",
    }


def _values(attributes: list[dict[str, Any]]) -> dict[str, str]:
    return {each["key"]: each["value"]["stringValue"] for each in attributes}


@pytest.mark.parametrize("answer", [b"", b"[]", b"nonsense", b'{"partialSuccess":7}', b"x" * 99999])
def test_any_answer_to_otlp_will_do(server: Server, answer: bytes) -> None:
    server.answers = [(200, answer)]
    sink = OtlpSink(server.url)
    sink.send([LINE])
    sink.close()
