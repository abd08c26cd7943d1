"""A wrong signal or size changes nothing, by whichever door it comes."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture, until

from agentd.client.sandbox import Sandbox
from agentd.model.errors import InvalidInput

daemon = fixture()
WRONG_SIGNALS: list[dict[str, Any]] = [
    {"signal": -1}, {"signal": 65}, {"signal": 2**40}, {"signal": 15, "target": "host"},
    {"signal": 0, "target": ""},
]  # fmt: skip
WRONG_SIZES = [{"rows": 0, "cols": 0}, {"rows": -1, "cols": 80}, {"rows": 24, "cols": 70000}]


@pytest.fixture
def process(daemon: Daemon) -> Iterator[str]:
    box = daemon.sandbox()
    body = {"cmd": "while :; do echo x; sleep 0.05; done", "wait": False, "pty": {}}
    made = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body)
    assert made.status == 201, made.body
    yield f"/v1/sandboxes/{box}/processes/{made.json['id']}"
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")


def goes_on(daemon: Daemon, process: str) -> bool:
    """It is told to run, it can be signalled, and its output grows."""
    view = daemon.ask("GET", process).json
    if view["state"] != "running" or daemon.ask("POST", f"{process}/signal", {"signal": 0}).code:
        return False
    seen = view["output"].get("pty", 0)
    until(lambda: daemon.ask("GET", process).json["output"].get("pty", 0) > seen)
    return True


def test_over_rest(daemon: Daemon, process: str) -> None:
    for body in WRONG_SIGNALS:
        assert daemon.ask("POST", f"{process}/signal", body).code == "invalid_input", body
    for body in WRONG_SIZES:
        assert daemon.ask("POST", f"{process}/resize", body).code == "invalid_input", body
    assert goes_on(daemon, process)
    assert daemon.ask("POST", f"{process}/signal", {"signal": 9}).status == 204
    until(lambda: daemon.ask("GET", process).json["state"] == "ended")
    ended = daemon.ask("GET", process).json["result"]
    assert (ended["signal"], ended["cause"]["code"]) == (9, "signalled")
    receipt = daemon.cli("receipt", "show", ended["request_id"], "--json")
    assert json.loads(receipt.stdout)["predicate"]["execution"]["cause"]["code"] == "signalled"
    assert daemon.ask("POST", f"{process}/signal", {"signal": 0}).status == 409
    assert daemon.ask("POST", f"{process}/signal", {"signal": -1}).status == 400


@pytest.mark.parametrize("begun", [{}, {"stdin": "whole"}, {"stdin_open": True}])
def test_input_that_no_command_could_read_is_refused(daemon: Daemon, begun: dict[str, Any]) -> None:
    box = f"/v1/sandboxes/{daemon.sandbox()}"
    body = {"cmd": "cat; exec sleep 600", "wait": False, **begun}
    process = f"{box}/processes/{daemon.ask('POST', f'{box}/exec', body).json['id']}"
    if "stdin_open" in begun:
        assert daemon.ask("POST", f"{process}/stdin?eof=true", b"whole").status == 204
    late = daemon.ask("POST", f"{process}/stdin", b"late")
    assert (late.status, late.code) == (400, "invalid_input"), late.body
    assert "stdin_open" in late.json["remediation"]
    assert daemon.ask("POST", f"{process}/stdin?eof=true", b"").status == 204  # it has its end
    assert daemon.ask("POST", f"{process}/signal", {"signal": 0}).status == 204
    if begun:
        output = f"{process}/output?stream=stdout"
        until(lambda: daemon.ask("GET", output).body == b"whole")


def test_a_terminal_of_no_size_is_refused(daemon: Daemon) -> None:
    box = daemon.sandbox()
    for size in WRONG_SIZES:
        answer = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true", "pty": size})
        assert answer.code == "invalid_input", answer.body


def test_over_a_websocket(daemon: Daemon, process: str) -> None:
    client = pytest.importorskip("websockets.sync.client")
    with client.unix_connect(daemon.socket, f"ws://localhost{process}/attach") as socket:
        for op in [{"op": "signal", **b} for b in WRONG_SIGNALS] + [
            {"op": "resize", **b} for b in WRONG_SIZES
        ]:
            socket.send(json.dumps(op))
            while isinstance(told := socket.recv(timeout=120), bytes) or "started" in told[:20]:
                pass
            assert json.loads(told)["error"]["code"] == "invalid_input", told
    assert goes_on(daemon, process)


def test_what_comes_as_it_ends_is_no_error_of_the_daemons(daemon: Daemon) -> None:
    client = pytest.importorskip("websockets.sync.client")
    closed = pytest.importorskip("websockets.exceptions").ConnectionClosed
    resize = b'{"op": "resize", "rows": 5, "cols": 5}'
    ops = [b'{"op": "signal", "signal": 9}', *(2000 * [resize])]
    # At once, masked with nothing: most are answered once it has ended.
    frames = b"".join(bytes((0x81, 0x80 | len(op))) + bytes(4) + op for op in ops)
    place = f"/v1/sandboxes/{daemon.sandbox()}"
    for _ in range(4):
        made = daemon.ask("POST", f"{place}/exec", {"cmd": "sleep 99", "wait": False, "pty": {}})
        process = f"{place}/processes/{made.json['id']}"
        with client.unix_connect(daemon.socket, f"ws://localhost{process}/attach") as socket:
            socket.recv(timeout=120)  # that it has begun
            socket.socket.sendall(frames)
            with contextlib.suppress(closed):
                while True:
                    socket.recv(timeout=120)
        until(lambda process=process: daemon.ask("GET", process).json["state"] == "ended")
    assert b"RuntimeError" not in daemon.log


def test_by_the_sdk(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTD_URL", daemon.url)
    for url in (daemon.url, None):
        if url is None:
            monkeypatch.delenv("AGENTD_URL")
        with Sandbox.create(url=url) as box, box.start("sleep 30") as running:
            running.signal(0)
            for number in (-1, 65):
                with pytest.raises(InvalidInput):
                    running.signal(number)
            with pytest.raises(InvalidInput):
                running.resize(0, 0)
            running.signal(15)
            assert running.wait().signal == 15
