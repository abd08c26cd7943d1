"""By each door, who is to blame for an end: the machine or the program."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_ended_by_itself import _first_above as first_above
from tests.integration.test_ended_by_itself import _moment as moment
from tests.integration.test_operations_at_a_sandboxes_end import slowly, told_of
from tests.security.daemons import Daemon, Later, running, until

from agentd import BackendLost, Client, CommandFailed, Sandbox


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    with running() as made:
        yield made


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


BIG = ["python3", "-c", "bytearray(1 << 30)"]
WAYS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("exited", {}, {"cmd": "exit 3"}),
    ("signalled", {}, {"cmd": "kill -9 $$"}),
    ("timeout", {}, {"cmd": "sleep 100", "timeout": "200ms"}),
    ("oom", {"memory": "64M"}, {"cmd": BIG}),
    ("output_limit", {"output": 1000}, {"cmd": "yes"}),
    ("spawn_failed", {}, {"cmd": ["no-such-program"]}),
)


@pytest.mark.parametrize(("code", "options", "body"), WAYS, ids=[way[0] for way in WAYS])
def test_a_program_that_ends_badly_is_to_blame(
    shared: Daemon, code: str, options: dict[str, Any], body: dict[str, Any]
) -> None:
    made = shared.ask("POST", "/v1/sandboxes", options)
    if code == "oom" and made.status == 403:
        pytest.skip(f"memory cannot be limited here: {made.json['cause']}")
    box = made.json["id"]
    told = shared.ask("POST", f"/v1/sandboxes/{box}/exec", body).json
    cause = told["cause"]
    assert (cause["code"], cause["infrastructure"]) == (code, False), cause
    words = [str(body["cmd"])] if isinstance(body["cmd"], str) else ["--", *body["cmd"]]
    limit = ["--timeout", body["timeout"]] if "timeout" in body else []
    shell = ["--", "sh", "-c", *words] if isinstance(body["cmd"], str) else words
    by_cli = json.loads(shared.cli("exec", "--json", *limit, box, *shell).stdout)
    assert by_cli["cause"]["code"] == code and by_cli["cause"]["infrastructure"] is False
    with Sandbox.create(embedded=True, **options) as here:
        result = here.run(body["cmd"], timeout=body.get("timeout"))
        assert (result.cause.code, result.cause.infrastructure) == (code, False)
        with pytest.raises(CommandFailed) as caught:
            here.run(body["cmd"], timeout=body.get("timeout"), check=True)
        assert caught.value.infrastructure is False
    receipt = json.loads(shared.cli("receipt", "show", told["receipt"], "--json").stdout)
    assert receipt["predicate"]["execution"]["cause"]["infrastructure"] is False
    shared.ask("DELETE", f"/v1/sandboxes/{box}")


def waiting(daemon: Daemon, box: str, cmd: str) -> Later:
    found = Later(lambda: daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": cmd}))
    until(lambda: bool(daemon.ask("GET", f"/v1/sandboxes/{box}/processes").json))
    return found


def test_who_ends_a_sandbox_is_told_so_and_not_that_the_machine_failed(shared: Daemon) -> None:
    box = shared.sandbox()
    waits = waiting(shared, box, "sleep 613.5")
    assert shared.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    told = waits.answer().json
    assert (told["cause"]["code"], told["status"]) == ("cancelled", "failed"), told
    assert told["cause"]["infrastructure"] is False
    end = shared.until_recorded(kind="end", sandbox=box)
    assert end.fields["cause"]["code"] == "cancelled"
    assert end.fields["cause"]["infrastructure"] is False


def test_a_command_that_is_just_being_started_is_told_who_ended_its_sandbox(
    shared: Daemon,
) -> None:
    """Its process is not there yet: the sandbox is idle, and ended while the answer waits."""
    box, seconds = shared.sandbox(), moment()
    processes = f"/v1/sandboxes/{box}/processes"
    begun = {"cmd": f"exec sleep {seconds}", "wait": False}
    first = shared.ask("POST", f"/v1/sandboxes/{box}/exec", begun).json["id"]
    up = f"/v1/sandboxes/{box}/exec", {"cmd": f"pgrep -f '^sleep {seconds}'"}
    until(lambda: shared.ask("POST", *up).json["exit_code"] == 0)
    agent = first_above(seconds)
    shared.ask("POST", f"{processes}/{first}/signal", {"signal": 9})
    until(lambda: shared.ask("GET", f"{processes}/{first}").json["state"] != "running")
    os.kill(agent, signal.SIGSTOP)
    waits = Later(lambda: shared.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "sleep 615.5"}))
    until(lambda: any("615.5" in str(one["argv"]) for one in shared.ask("GET", processes).json))
    assert shared.ask("DELETE", f"/v1/sandboxes/{box}").status == 204
    told = waits.answer().json
    assert (told["cause"]["code"], told["status"]) == ("cancelled", "failed"), told


def test_a_lease_that_ends_is_nobodys_failure(shared: Daemon) -> None:
    box = shared.sandbox()
    waits = waiting(shared, box, "sleep 613.75")
    assert shared.ask("POST", f"/v1/sandboxes/{box}/renew", {"ttl": "1s"}).status == 200
    told = waits.answer()
    assert told.json["cause"]["code"] == "lease_expired", told.body
    assert told.json["cause"]["infrastructure"] is False and told.json["cause"]["remediation"]


def test_closed_in_this_process(shared: Daemon) -> None:
    sandbox = Sandbox.create(embedded=True)
    process = sandbox.start("echo up; sleep 100")
    assert next(iter(process)).data == b"up\n"
    sandbox.close()
    cause = process.wait().cause
    assert (cause.code, cause.infrastructure) == ("cancelled", False)


def test_a_wall_that_dies_is_the_machines(shared: Daemon) -> None:
    box, seconds = shared.sandbox(), moment()
    waits = waiting(shared, box, f"exec sleep {seconds}")
    up = f"/v1/sandboxes/{box}/exec", {"cmd": f"pgrep -f '^sleep {seconds}'"}
    until(lambda: shared.ask("POST", *up).json["exit_code"] == 0)
    os.kill(first_above(seconds), signal.SIGKILL)
    told = waits.answer().json
    assert told["cause"]["code"] == "backend_lost" and told["cause"]["infrastructure"] is True
    assert BackendLost("gone").infrastructure


def test_a_daemon_that_is_killed_is_the_machines(daemon: Daemon) -> None:
    box = daemon.sandbox()
    body = {"cmd": "sleep 600", "wait": False}
    started = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body).json
    daemon.stop(kill=True)
    daemon.end_supervisor()
    daemon.start()
    end = daemon.until_recorded(kind="end", sandbox=box)
    assert end.fields["cause"]["code"] == "interrupted"
    assert end.fields["cause"]["infrastructure"] is True
    assert started["state"] == "running"


def test_a_daemon_that_shuts_down_is_the_machines(daemon: Daemon) -> None:
    box = daemon.sandbox()
    waits = waiting(daemon, box, "sleep 600")
    assert daemon.stop() == 0
    told = waits.answer().json
    assert (told["cause"]["code"], told["status"]) == ("interrupted", "error"), told
    assert told["cause"]["infrastructure"] is True


def test_memory_that_ran_out_before_a_restart_ends_no_wall_after_it(daemon: Daemon) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"memory": "64M"})
    if made.status == 403:
        pytest.skip(f"memory cannot be limited here: {made.json['cause']}")
    box, seconds, going = made.json["id"], moment(), threading.Event()
    at = f"/v1/sandboxes/{box}/exec"
    assert daemon.ask("POST", at, {"cmd": BIG}).json["cause"]["code"] == "oom"
    waits = waiting(daemon, box, f"exec sleep {seconds}")
    until(lambda: daemon.ask("POST", at, {"cmd": f"pgrep -f '^sleep {seconds}'"}).json["stdout"])
    first = first_above(seconds)
    daemon.ask("POST", at, {"cmd": f"pkill -f '^sleep {seconds}'"})
    assert waits.answer().json["cause"]["code"] == "signalled"
    daemon.stop()
    daemon.start()
    with Client(daemon.url) as client:
        upload = Later(
            lambda: told_of(lambda: client.files.write(box, "/workspace/up", slowly(going)))
        )
        try:
            daemon.until_recorded(kind="start", sandbox=box, capability="fs.write.v1")
            os.kill(first, signal.SIGKILL)
            assert upload.answer()[:2] == ("backend_lost", True)
        finally:
            going.set()


def test_the_example_of_the_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs/causes.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", example], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
