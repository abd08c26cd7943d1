"""What a killed daemon had begun has one start, one end and one cause in the log of the next."""

import contextlib
import json
import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, running, until


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def killed(daemon: Daemon) -> None:
    assert daemon.process is not None
    os.kill(daemon.process.pid, signal.SIGKILL)
    daemon.stop(kill=True)


def exec_later(daemon: Daemon, box: str, cmd: str, *, wait: bool = True) -> threading.Thread:
    """One whose answer never comes."""

    def ask() -> None:
        try:
            daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": cmd, "wait": wait})
        except OSError:
            return
        except Exception as error:  # http.client's own
            assert "Remote" in type(error).__name__, error

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def causes(daemon: Daemon, sandbox: str) -> Counter[str]:
    return Counter(
        record.fields["cause"]["code"] for record in daemon.records(kind="end", sandbox=sandbox)
    )


def test_what_somebody_waited_for_is_ended_once(daemon: Daemon) -> None:
    box = daemon.sandbox()
    waiting = exec_later(daemon, box, "sleep 60")
    until(lambda: bool(daemon.records(kind="start", sandbox=box)))
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true"})
    killed(daemon)
    waiting.join()
    for _ in range(2):
        daemon.start()
        assert daemon.is_up, daemon.log
        assert causes(daemon, box) == {"interrupted": 1, "exited": 1}
        killed(daemon)
    daemon.start()
    (start,) = [r for r in daemon.records(kind="start", sandbox=box) if r.seq < 10][:1]
    receipt = daemon.cli("receipt", "show", start.request, "--json")
    found = json.loads(receipt.stdout)["predicate"]["execution"]
    assert found["cause"]["code"] == "interrupted" and found["request"] == start.request
    assert daemon.cli("audit", "verify", "--dir", daemon.audit).returncode == 0


def test_what_lives_on_ends_when_it_ends(daemon: Daemon) -> None:
    box = daemon.sandbox()
    started = daemon.ask(
        "POST", f"/v1/sandboxes/{box}/exec", {"cmd": "sleep 600; exit 3", "wait": False}
    ).json
    for _ in range(2):
        killed(daemon)
        daemon.start()
        assert causes(daemon, box) == {}
    process = f"/v1/sandboxes/{box}/processes/{started['id']}"
    assert daemon.ask("POST", f"{process}/signal", {"signal": 15}).status == 204
    until(lambda: causes(daemon, box) == {"signalled": 1})
    killed(daemon)
    daemon.start()
    assert causes(daemon, box) == {"signalled": 1}
    assert len(daemon.records(kind="start", sandbox=box)) == 1


def test_what_ended_with_its_sandbox_is_interrupted(daemon: Daemon) -> None:
    box = daemon.sandbox(ttl="600s")
    daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "sleep 600", "wait": False})
    killed(daemon)
    daemon.start()
    killed(daemon)
    daemon.end_supervisor()
    daemon.start()
    assert daemon.is_up, daemon.log.decode()
    until(lambda: causes(daemon, box) == {"interrupted": 1})
    killed(daemon)
    daemon.start()
    assert causes(daemon, box) == {"interrupted": 1}


def test_what_was_begun_and_not_yet_recorded_is_ended_once_and_does_not_go_on(
    daemon: Daemon,
) -> None:
    box = daemon.sandbox()
    files = f"/v1/sandboxes/{box}/files/stat?path=/workspace/begun"
    sleepers = {"cmd": "ps -eo comm= | grep -x sleep"}
    with contextlib.closing(sqlite3.connect(daemon.state / "store.db")) as store:
        store.execute("BEGIN IMMEDIATE")  # no record is written meanwhile
        starting = exec_later(daemon, box, "touch begun; sleep 600", wait=False)
        until(lambda: daemon.ask("GET", files).status == 200)
        killed(daemon)
    starting.join()
    daemon.start()
    assert daemon.is_up, daemon.log
    assert daemon.ask("GET", f"/v1/sandboxes/{box}/processes").json == []
    assert causes(daemon, box) == {"interrupted": 1}
    until(lambda: daemon.ask("POST", f"/v1/sandboxes/{box}/exec", sleepers).json["exit_code"] == 1)


def test_what_is_refused_for_its_record_does_not_go_on(daemon: Daemon) -> None:
    box = daemon.sandbox()
    exec_ = f"/v1/sandboxes/{box}/exec"
    with contextlib.closing(sqlite3.connect(daemon.state / "store.db")) as store:
        store.execute("BEGIN IMMEDIATE")
        refused = daemon.ask("POST", exec_, {"cmd": "exec sleep 600", "wait": False})
        assert refused.status == 503, refused.body
    until(lambda: causes(daemon, box) == {"signalled": 1})
    assert daemon.ask("POST", exec_, {"cmd": "ps -eo comm= | grep -x sleep"}).json["exit_code"] == 1


def test_a_caller_who_is_refused_all_the_time_does_not_fill_the_log(daemon: Daemon) -> None:
    key = daemon.key("reader", "read")
    connection = daemon.connect()
    for _ in range(1000):
        connection.request(
            "POST", "/v1/sandboxes", b"{}", {"X-API-Key": key, "content-type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 403
    connection.close()
    daemon.stop()
    denials = daemon.records(kind="denial", principal="reader")
    assert len(denials) < 900  # 200 at once, and two a second
    told = sum(record.fields.get("repeated", 1) for record in denials)
    assert told == 1000
