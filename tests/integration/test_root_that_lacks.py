"""Root that lacks capabilities or ids, as in most containers: what counts is what it may do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.contained import CONTAINER, with_capabilities, without_capabilities
from tests.security.daemons import Daemon

pytestmark = pytest.mark.root

# Two at once, one of which was made ahead, perhaps: who they are outside, and that they end.
_TWO = """
import sys
from agentd import Sandbox
print("began", flush=True)
boxes = [Sandbox.create(isolation="namespace") for _ in range(4)]
for box in boxes:
    print(box.run(["cat", "/proc/self/uid_map"]).text.split()[1])
for box in boxes:
    box.close()
"""
# Landlock forbids it as well, so it is left out; core_pattern is given what it has.
_WRITES = """
import sys
from agentd.client import build
from agentd.model.spec import ExecRequest
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.transport.guest import Guest
backend = LinuxBackend(without=frozenset(sys.argv[1:]))
wall = backend.launch(backend.plan(build.sandbox_spec()))
guest = Guest(wall.open_stream, passes_descriptors=True)
script = "cd /proc/sys/kernel; text=$(cat core_pattern); echo \\"$text\\" > core_pattern"
print(guest.run(ExecRequest(("sh", "-c", script), cwd="/"))[0].ok)
guest.close()
wall.kill()
backend.close()
"""


def _run(prefix: list[str], *words: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    return subprocess.run(
        [*prefix, sys.executable, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=kept,
        timeout=300,
        check=False,
    )


def _agentd(prefix: list[str], *words: str) -> "subprocess.CompletedProcess[str]":
    return _run(prefix, "-m", "agentd", *words)


def _result(prefix: list[str], *words: str) -> Any:
    done = _agentd(prefix, "run", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("lacks", [
    with_capabilities(*CONTAINER),
    without_capabilities("sys_admin"),
], ids=["container", "sys_admin"])  # fmt: skip
def test_its_sandboxes_are_users_that_own_nothing(lacks: list[str]) -> None:
    found = _result(lacks, "--", "cat", "/proc/self/uid_map")
    assert found["sandbox"]["level"] == "namespace"
    assert int(found["stdout"].split()[1]) >= 1 << 16
    user = found["enforcement"]["user_namespace"]
    assert user["enforced"] and "owns nothing" in user["detail"]


def test_no_two_of_them_are_one_user() -> None:
    done = _run(with_capabilities(*CONTAINER), "-c", _TWO)
    assert done.returncode == 0, done.stderr
    began, *ids = done.stdout.split()
    assert began == "began" and len(set(ids)) == 4


def test_its_daemon_serves(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, prefix=with_capabilities(*CONTAINER))
    try:
        daemon.start()
        answer = daemon.ask("POST", "/v1/run", {"exec": {"cmd": ["id", "-u"]}})
        assert answer.status == 200, answer.body
        assert answer.json["sandbox"]["level"] == "namespace", answer.body
    finally:
        daemon.end()


@pytest.mark.parametrize("level", ["namespace", "process"])
@pytest.mark.parametrize(("prefix", "why"), [
    (without_capabilities("setuid"), "root here lacks CAP_SETUID"),
    (["unshare", "--user", "--map-root-user"], "root of a user namespace that has no ids"),
], ids=["setuid", "userns"])  # fmt: skip
def test_where_none_can_be_given_they_are_the_caller(
    level: str, prefix: list[str], why: str
) -> None:
    found = _result(prefix, "--isolation", level, "--", "true")
    assert found["sandbox"]["level"] == level
    told = found["enforcement"]["user_namespace" if level == "namespace" else "user"]
    assert why in told["detail"]
    assert found["enforcement"]["shared"]["enforced"] is False


def test_without_any_the_process_level_works() -> None:
    found = _result(with_capabilities(), "--isolation", "process", "--", "true")
    assert found["sandbox"]["level"] == "process"


def test_without_any_the_namespace_level_says_which_one_it_takes() -> None:
    done = _agentd(with_capabilities(), "run", "--backend", "linux", "--", "true")
    assert done.returncode == 125
    assert "CAP_SETFCAP" in done.stderr and "ordinary user" in done.stderr, done.stderr


@pytest.mark.parametrize("level", ["namespace", "process"])
def test_a_read_only_run_is_no_obstacle(level: str) -> None:
    """As with docker run --read-only."""
    script = 'mount --bind /run /run && mount -o remount,bind,ro /run && exec "$0" "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script]
    found = _result(prefix, "--isolation", level, "--", "true")
    assert found["sandbox"]["level"] == level
    told = found["enforcement"]["user_namespace" if level == "namespace" else "user"]
    assert told["enforced"] and "owns nothing" in told["detail"]


@pytest.mark.parametrize(("off", "written"), [
    (["landlock"], "False"),
    (["landlock", "user_counts"], "True"),  # of the same step
], ids=["guarded", "off"])  # fmt: skip
def test_one_that_is_the_machines_root_outside_cannot_write_proc_sys(
    off: list[str], written: str
) -> None:
    done = _run(without_capabilities("setuid"), "-c", _WRITES, *off)
    assert done.stdout.strip() == written, done.stderr
