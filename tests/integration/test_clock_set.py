"""Somebody sets the clock under a daemon, as NTP does: leases last as long as they were given."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Daemon, Later, running, until

DAY = 86400.0
# Of the daemon, and of the supervisor that it starts. Only what reads the clock of the wall is set.
SITE = """
import time
_time, _time_ns = time.time, time.time_ns
def _offset():
    with open({path!r}) as file:
        return float(file.read() or 0)
time.time = lambda: _time() + _offset()
time.time_ns = lambda: _time_ns() + int(_offset() * 1e9)
"""


class Clock:
    def __init__(self, folder: Path) -> None:
        self._file = folder / "offset"
        self.set(0)
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.format(path=str(self._file)))
        others = os.environ.get("PYTHONPATH", "")
        self.prefix = "env", f"PYTHONPATH={site}:{others}"

    def set(self, offset: float) -> None:
        self.offset = offset
        new = self._file.with_suffix(".new")
        new.write_text(str(offset))
        new.rename(self._file)

    def now(self) -> float:
        return time.time() + self.offset


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def daemon(clock: Clock) -> Iterator[Daemon]:
    with running(prefix=clock.prefix) as made:
        yield made


def is_there(daemon: Daemon, sandbox: str) -> bool:
    return daemon.ask("GET", f"/v1/sandboxes/{sandbox}").status == 200


def left(daemon: Daemon, clock: Clock, sandbox: str) -> float:
    found = daemon.ask("GET", f"/v1/sandboxes/{sandbox}").json
    seconds: float = found["deadline"] - clock.now()
    return seconds


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_a_lease_lasts_as_long_as_it_was_given(daemon: Daemon, clock: Clock, step: float) -> None:
    long = daemon.sandbox(ttl=600)
    before = daemon.sandbox(ttl=3)
    clock.set(step)
    made = daemon.sandbox(ttl=1)
    for short in (before, made):
        until(lambda short=short: not is_there(daemon, short))  # type: ignore[misc]
        told = f"sandbox={short} reason=lease_expired".encode()
        until(lambda told=told: told in daemon.log)  # type: ignore[misc]
    assert is_there(daemon, long)
    assert 300 < left(daemon, clock, long) <= 600, "what it is told by the clock of now"


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_it_goes_on_over_a_restart(daemon: Daemon, clock: Clock, step: float) -> None:
    long, short = daemon.sandbox(ttl=600), daemon.sandbox(ttl=200)
    daemon.stop(kill=True)
    clock.set(step)
    daemon.start()
    assert daemon.is_up
    assert 300 < left(daemon, clock, long) <= 600
    assert 0 < left(daemon, clock, short) <= 200
    renewed = daemon.ask("POST", f"/v1/sandboxes/{short}/renew", {"ttl": 1})
    assert renewed.status == 200, renewed.body
    until(lambda: not is_there(daemon, short))
    assert is_there(daemon, long)


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_what_waits_for_an_approval_waits_as_long(clock: Clock, step: float) -> None:
    rules = """
default decision := {"allow": true}
decision := {"allow": true, "obligations": {"approve": true}} if "ask" in input.parameters.args
"""
    with running(policy=rules, prefix=clock.prefix) as daemon:
        alice = daemon.key("alice")
        path = f"/v1/sandboxes/{daemon.sandbox(alice)}/exec"
        later = Later(lambda: daemon.ask("POST", path, {"cmd": ["echo", "ask"]}, key=alice))
        until(lambda: bool(daemon.ask("GET", "/v1/approvals").json))
        clock.set(step)
        (view,) = daemon.ask("GET", "/v1/approvals").json
        assert view["state"] == "pending"
        decide = f"/v1/approvals/{view['id']}/decide"
        assert daemon.ask("POST", decide, {"allow": True}).status == 200
        assert later.answer().json["stdout"] == "ask\n"


@pytest.mark.parametrize("step", [DAY, -DAY])
def test_what_was_done_is_not_done_again(daemon: Daemon, clock: Clock, step: float) -> None:
    path = f"/v1/sandboxes/{daemon.sandbox(ttl=600)}/exec"
    body = {"cmd": "echo done >> /tmp/done; cat /tmp/done"}
    answers = []
    for offset in (0.0, step, 0.0):
        clock.set(offset)
        answers.append(daemon.ask("POST", path, body, Idempotency_Key="once"))
    assert [answer.json["stdout"] for answer in answers] == ["done\n"] * 3


def test_files_of_the_audit_log_are_kept_as_long(clock: Clock) -> None:
    """Nobody who sets the clock has evidence deleted."""
    with running('[audit]\nfile = "64K"\nkeep = "1h"\n', prefix=clock.prefix) as daemon:
        path = f"/v1/sandboxes/{daemon.sandbox()}/exec"

        def files() -> list[str]:
            return sorted(each.name for each in Path(daemon.audit).glob("audit-*.jsonl"))

        def filled(count: int) -> None:
            while len(files()) < count:
                asked = {"cmd": ["true", "x" * 4000]}
                assert daemon.ask("POST", path, asked).status == 200

        filled(2)
        first, *_ = files()
        clock.set(DAY)
        filled(4)
        assert files()[0] == first and len(files()) == 4
