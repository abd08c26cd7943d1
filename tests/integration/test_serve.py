"""``agentd serve`` as a process: ready, reloaded, drained, ended, started again."""

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agentd.audit import read
from agentd.model.errors import AgentdError
from agentd.sandbox.supervisor import client

WAIT = 120.0
CONFIG = """
pool = []
[daemon]
drain = "{drain}"
[log]
format = "json"
level = "{level}"
[quotas.default]
sandboxes = {sandboxes}
"""


class Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=WAIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(WAIT)
        self.sock.connect(self._path)


class Place:
    """A configuration, a state and a socket, and the daemons that are started on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = str(folder / "a.sock")
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(folder / "notify"))
        self.notices.settimeout(WAIT)
        self.write()

    def write(self, drain: str = "20s", level: str = "info", sandboxes: int = 4) -> None:
        text = CONFIG.format(drain=drain, level=level, sandboxes=sandboxes)
        (self.folder / "agentd.toml").write_text(text)

    @contextmanager
    def daemon(self, *words: str, **extra: str) -> "Iterator[subprocess.Popen[str]]":
        """One that is ready."""
        argv = [sys.executable, "-m", "agentd", "serve", "--config", f"{self.folder}/agentd.toml"]
        argv += ["--state", f"{self.folder}/state", "--listen", f"unix:{self.socket}", *words]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AGENTD_", "OTEL_"))}
        env |= {"NOTIFY_SOCKET": f"{self.folder}/notify", "WATCHDOG_USEC": "200000"}
        env |= extra
        with (
            open(self.folder / "log", "ab") as log,
            subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=env, text=True) as found,
        ):
            try:
                yield found
            finally:
                if found.poll() is None:
                    found.kill()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        found = Unix(self.socket)
        try:
            data = None if body is None else json.dumps(body)
            if body is not None:
                headers["content-type"] = "application/json"
            found.request(method, path, data, headers)
            answer = found.getresponse()
            raw = answer.read()
            is_json = answer.headers["content-type"] == "application/json"
            return answer.status, json.loads(raw) if is_json else raw.decode()
        finally:
            found.close()

    def told(self, state: str) -> str:
        """The next datagram that says so; those of the watchdog come in between."""
        while True:
            text = self.notices.recv(4096).decode()
            if state in text.split("\n"):
                return text

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = (self.folder / "log").read_text().splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in found if line["event"] == event]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        found = Place(Path(folder))
        yield found
        found.notices.close()
        supervisor = f"{folder}/state/supervisor.sock"
        if os.path.exists(supervisor):
            with suppress(AgentdError):
                link = client.connect(supervisor, lambda *_: None)
                link.ask("shutdown")
                link.close()
            until(lambda: not os.path.exists(supervisor))


def ready(daemon: "subprocess.Popen[str]") -> str:
    assert daemon.stdout is not None
    line = daemon.stdout.readline()
    assert line.endswith(f"(pid {daemon.pid})\n"), line
    return line


def end(daemon: "subprocess.Popen[str]", code: int = 0) -> None:
    assert daemon.wait(WAIT) == code


def exec_later(place: Place, sandbox: str, cmd: str) -> "tuple[threading.Thread, list[Any]]":
    answers: list[Any] = []

    def work() -> None:
        with suppress(OSError, http.client.HTTPException):
            answers.append(place.ask("POST", f"/v1/sandboxes/{sandbox}/exec", {"cmd": cmd}))

    thread = threading.Thread(target=work)
    thread.start()
    return thread, answers


def running(place: Place) -> bool:
    return "agentd_commands_running 1.0" in place.ask("GET", "/metrics")[1]


def test_it_says_when_it_is_ready_and_goes_on_after_a_restart(place: Place) -> None:
    with place.daemon() as daemon:
        assert ready(daemon).startswith("agentd 0") and place.socket in daemon.args[-1]
        assert f"MAINPID={daemon.pid}" in place.told("READY=1")
        place.told("WATCHDOG=1")
        assert place.ask("GET", "/readyz")[0] == 200
        _, sandbox = place.ask("POST", "/v1/sandboxes", {})
        daemon.terminate()
        place.told("STOPPING=1")
        end(daemon)
        assert not os.path.exists(place.socket)
    with place.daemon() as daemon:
        ready(daemon)
        assert place.log("went on after a restart")[-1]["sandboxes"] == 1
        url = f"/v1/sandboxes/{sandbox['id']}"
        status, result = place.ask("POST", f"{url}/exec", {"cmd": "echo hello"})
        assert (status, result["stdout"]) == (200, "hello\n")
        assert place.ask("DELETE", url)[0] == 204
        daemon.terminate()
        end(daemon)


def test_sigterm_answers_what_was_asked(place: Place) -> None:
    with place.daemon() as daemon:
        ready(daemon)
        _, sandbox = place.ask("POST", "/v1/sandboxes", {})
        thread, answers = exec_later(place, sandbox["id"], "sleep 2; echo done")
        until(lambda: running(place))
        daemon.terminate()
        thread.join(WAIT)
        ((status, result),) = answers
        assert (status, result["stdout"]) == (200, "done\n")
        end(daemon)
    assert place.log("drained")[-1]["whole"] is True


def test_what_outlasts_the_drain_is_ended_and_told_so(place: Place) -> None:
    place.write(drain="500ms")
    with place.daemon() as daemon:
        ready(daemon)
        _, sandbox = place.ask("POST", "/v1/sandboxes", {})
        cmd = "echo begun; touch begun; sleep 600"
        thread, answers = exec_later(place, sandbox["id"], cmd)
        begun = f"/v1/sandboxes/{sandbox['id']}/files/stat?path=/workspace/begun"
        until(lambda: place.ask("GET", begun)[0] == 200)
        daemon.terminate()
        thread.join(WAIT)
        ((status, result),) = answers
        assert (status, result["stdout"], result["exit_code"]) == (200, "begun\n", None)
        end(daemon)


def test_a_second_sigterm_ends_it_at_once(place: Place) -> None:
    with place.daemon() as daemon:
        ready(daemon)
        _, sandbox = place.ask("POST", "/v1/sandboxes", {})
        thread, answers = exec_later(place, sandbox["id"], "sleep 600")
        until(lambda: running(place))
        daemon.terminate()
        place.told("STOPPING=1")
        daemon.terminate()
        end(daemon, 128 + signal.SIGTERM)
        thread.join(WAIT)
    assert answers == []
    with place.daemon() as daemon:  # the socket of the one before is in nobody's way
        ready(daemon)
        assert len(place.ask("GET", "/v1/sandboxes")[1]["sandboxes"]) == 1


def test_the_help_names_the_status_of_a_second_sigterm(place: Place) -> None:
    words = [sys.executable, "-m", "agentd", "serve", "--help"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert f"{128 + signal.SIGTERM} told twice" in told


def test_what_is_no_cursor_of_sandboxes_is_refused(place: Place) -> None:
    with place.daemon() as daemon:
        ready(daemon)
        status, answer = place.ask("GET", "/v1/sandboxes?cursor=zzz")
        assert (status, answer.get("code")) == (400, "invalid_input")


def test_sighup_takes_over_what_can_be_and_says_what_cannot(place: Place) -> None:
    with place.daemon() as daemon:
        ready(daemon)
        place.told("READY=1")
        place.write(sandboxes=0, level="debug", drain="7s")
        daemon.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in place.told("RELOADING=1")
        place.told("READY=1")
        taken = place.log("the configuration is taken over")[-1]["changed"]
        assert taken == ["log.level", "quotas.default.sandboxes"]
        assert place.log("holds after the next start only")[-1]["changed"] == ["daemon.drain"]
        status, refused = place.ask("POST", "/v1/sandboxes", {})
        assert (status, refused["code"]) == (429, "quota_exceeded")
        assert place.ask("GET", "/v1/version")[0] == 200
        assert place.ask("GET", "/v1/stats")[0] == 200
        assert place.log("request")[-1]["op"] == "stats", "debug lines are written now"


def test_a_wrong_configuration_is_not_taken_over(place: Place) -> None:
    with place.daemon() as daemon:
        ready(daemon)
        place.told("READY=1")
        (place.folder / "agentd.toml").write_text("[quotas.default]\nsandboxs = 0\n")
        daemon.send_signal(signal.SIGHUP)
        place.told("READY=1")
        error = place.log("the configuration is not taken over")[-1]
        assert error["level"] == "error" and "did you mean 'sandboxes'" in error["error"]
        assert place.ask("POST", "/v1/sandboxes", {})[0] == 201


def test_a_request_is_one_in_answer_log_and_metrics(place: Place) -> None:
    place.write(level="debug")
    with place.daemon() as daemon:
        ready(daemon)
        _, sandbox = place.ask("POST", "/v1/sandboxes", {})
        path = f"/v1/sandboxes/{sandbox['id']}/exec"
        _, result = place.ask("POST", path, {"cmd": "exit 3"}, authorization="Bearer nonsense123")
        assert result["code"] == "unauthenticated"
        _, result = place.ask("POST", path, {"cmd": "exit 3"})
        (line,) = [e for e in place.log("request") if e["op"] == "exec"]
        assert line["request"] == result["request_id"] and line["sandbox"] == sandbox["id"]
        metrics = place.ask("GET", "/metrics")[1]
        assert 'agentd_requests_total{code="ok",op="exec"} 1.0' in metrics
        assert 'agentd_commands_total{backend="linux",cause="exited"} 1.0' in metrics
        assert 'agentd_sandboxes_made_total{backend="linux",source="cold"} 1.0' in metrics
        daemon.terminate()
        end(daemon)
    assert "nonsense" not in (place.folder / "log").read_text()


def test_metrics_are_not_for_everybody_on_tcp(place: Place) -> None:
    with place.daemon("--listen", "127.0.0.1:0") as daemon:
        line = ready(daemon)
        port = int(line.rpartition("http://127.0.0.1:")[2].split()[0])
        found = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
        found.request("GET", "/metrics")
        answer = found.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (401, "unauthenticated")
        assert answer.headers["x-request-id"].startswith("req-")
        found.close()
        assert place.ask("GET", "/metrics")[0] == 200


def test_a_second_daemon_on_the_state_is_refused(place: Place) -> None:
    with place.daemon() as daemon:
        ready(daemon)
        with place.daemon() as second:
            end(second, 125)
        assert str(daemon.pid) in (place.folder / "log").read_text()
        assert place.ask("GET", "/readyz")[0] == 200


def spans(text: str) -> dict[str, dict[str, Any]]:
    """Of the console exporter: objects one after the other."""
    found, decoder = {}, json.JSONDecoder()
    while text := text.lstrip():
        span, length = decoder.raw_decode(text)
        found[span["name"]] = span
        text = text[length:]
    return found


def test_one_trace_leads_from_the_request_to_the_command(place: Place) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed")
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with place.daemon(OTEL_TRACES_EXPORTER="console") as daemon:
        ready(daemon)
        _, sandbox = place.ask("POST", "/v1/sandboxes", {})
        path = f"/v1/sandboxes/{sandbox['id']}/exec"
        headers = {"traceparent": f"00-{trace}-{parent}-01"}
        _, result = place.ask("POST", path, {"cmd": "echo $TRACEPARENT"}, **headers)
        daemon.terminate()
        text, _ = daemon.communicate(timeout=WAIT)
    found = spans(text)
    outer = found["agentd.exec"]
    assert (outer["context"]["trace_id"], outer["parent_id"]) == (f"0x{trace}", f"0x{parent}")
    span = outer["context"]["span_id"]
    for name in ("guest.start", "guest.command"):
        assert found[name]["parent_id"] == span
    assert result["stdout"] == f"00-{trace}-{span.removeprefix('0x')}-01\n"
    assert found["guest.command"]["attributes"]["agentd.cause"] == "exited"
    assert found["sandbox.open"]["parent_id"] == found["agentd.create"]["context"]["span_id"]


def test_a_call_that_goes_on_is_ended_and_whoever_waits_is_told(place: Place) -> None:
    place.write(drain="1s")
    with place.daemon() as daemon:
        ready(daemon)
        answers: list[Any] = []
        body = {
            "capability": "shell.exec.v1",
            "parameters": {"command": "sh", "args": ["-c", "echo begun > begun; sleep 600"]},
        }
        _, made = place.ask("POST", "/v1/sandboxes", {})
        body["sandbox"] = made["id"]
        caller = threading.Thread(
            target=lambda: answers.append(place.ask("POST", "/v1/call", body))
        )
        caller.start()
        where = f"/v1/sandboxes/{made['id']}/files/stat?path=/workspace/begun"
        until(lambda: place.ask("GET", where)[0] == 200)
        daemon.send_signal(signal.SIGTERM)
        end(daemon)
        caller.join()
    ((status, view),) = answers
    assert (status, view["status"], view["cause"]["code"]) == (200, "error", "interrupted")
    assert view["receipt"] == view["request_id"]


def test_a_sandbox_s_begin_and_end_are_written_down_and_decisions_counted(place: Place) -> None:
    def records(**wanted: str) -> list[Any]:
        found = read.records(f"{place.folder}/state/audit")
        return [r for r in found if all(getattr(r, k) == v for k, v in wanted.items())]

    with place.daemon() as daemon:
        ready(daemon)
        _, made = place.ask("POST", "/v1/sandboxes", {})
        until(lambda: bool(records(kind="sandbox_created")))
        (created,) = records(kind="sandbox_created")
        assert (created.sandbox, created.principal) == (made["id"], made["principal"])
        assert created.fields == {"backend": made["backend"], "level": made["level"]}
        kinds = [r.kind for r in records(request=created.request)]
        assert kinds == ["admission", "sandbox_created"]
        assert place.ask("DELETE", f"/v1/sandboxes/{made['id']}")[0] == 204
        until(lambda: bool(records(kind="sandbox_ended")))
        (ended,) = records(kind="sandbox_ended", sandbox=made["id"])
        assert ended.fields == {"reason": "destroyed"} and ended.request != created.request
        # With the one of its opening; that it is in the file is counted once it is on disk.
        until(lambda: "agentd_audit_records_total 4.0" in place.ask("GET", "/metrics")[1])
        _, text = place.ask("GET", "/metrics")
        assert 'agentd_decisions_total{answer="allow"} 1.0' in text
        assert "agentd_audit_lost_total 0.0" in text and "agentd_audit_unsent_total 0.0" in text
        daemon.send_signal(signal.SIGTERM)
        end(daemon)


def test_a_sandbox_that_cannot_be_written_down_is_ended_and_not_answered(place: Place) -> None:
    sandboxes = "/v1/sandboxes"
    with place.daemon() as daemon:
        ready(daemon)
        store = next(Path(f"{place.folder}/state").rglob("*-wal"))
        while store.stat().st_size < 256 << 10:
            status, made = place.ask(
                "POST", sandboxes, {}, **{"idempotency-key": os.urandom(8).hex()}
            )
            assert status == 201
            assert place.ask("DELETE", f"{sandboxes}/{made['id']}")[0] == 204
        before = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (128 << 10, before[1]))
        for headers in ({}, {"idempotency-key": "k"}):
            status, error = place.ask("POST", sandboxes, {}, **headers)
            assert (status, error["code"]) == (503, "store_error"), error
            assert place.ask("GET", sandboxes)[1]["sandboxes"] == []
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, before)
        status, made = place.ask("POST", sandboxes, {}, **{"idempotency-key": "k"})
        assert status == 201
        found = place.ask("GET", sandboxes)[1]["sandboxes"]
        assert [view["id"] for view in found] == [made["id"]]
        daemon.terminate()
        end(daemon)


def test_of_a_sandbox_that_is_ended_nothing_is_left_to_see(place: Place) -> None:
    """Also where its end is answered before all of it is done: one may be there at a time."""
    place.write(sandboxes=1, level="debug")
    count, sandboxes = 10, "/v1/sandboxes"
    with place.daemon() as daemon:
        ready(daemon)
        for number in range(count):
            status, made = place.ask("POST", sandboxes, {})
            assert status == 201, made
            one = f"{sandboxes}/{made['id']}"
            if number % 2:
                place.ask("POST", f"{one}/exec", {"cmd": "sleep 600 >/dev/null 2>&1 &"})
            assert place.ask("DELETE", one)[0] == 204
            assert place.ask("GET", one)[0] == place.ask("DELETE", one)[0] == 404
            assert place.ask("GET", sandboxes)[1]["sandboxes"] == []
        until(lambda: len([e for e in place.log("request") if e["op"] == "delete"]) == count)
        assert len(place.log("sandbox ended")) == count
        text = place.ask("GET", "/metrics")[1]
        assert f'agentd_requests_total{{code="ok",op="delete"}} {count}.0' in text
        daemon.terminate()
        end(daemon)
    ended = [r for r in read.records(f"{place.folder}/state/audit") if r.kind == "sandbox_ended"]
    assert len(ended) == count
