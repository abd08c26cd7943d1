"""``agentd call``, ``receipt``, ``audit`` and ``policy learn`` with a real daemon."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_client_of_a_daemon import Daemon

from agentd import Sandbox

EDIT = json.dumps({"path": "a", "edits": [{"search": "nope", "replace": ""}]})


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def sandbox(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox.create(url=daemon.url, ttl="10m") as made:
        made.files.write("/workspace/a", b"text")
        yield made


def test_a_capabilitys_error_ends_with_1_and_a_refusal_with_125(
    daemon: Daemon, sandbox: Sandbox
) -> None:
    place = ("--sandbox", sandbox.id)
    for words, code in (
        (("fs.edit.v1", "--json", EDIT), 1),
        (("fs.edit.v1", "--json", EDIT, "--follow"), 1),
        (("fs.read.v1", "--params", '{"path": "gone"}'), 1),
        (("fs.read.v1", "--params", '{"path": "gone"}', "--follow"), 1),
        (("fs.read.v1", "--params", '{"file": "a"}'), 2),
        (("fs.list.v1", "--bundle", "sha256:" + "0" * 64), 125),
        (("fs.list.v1",), 0),
    ):
        done = daemon.cli("call", *place, *words)
        assert done.returncode == code, (words, done.stderr)


def test_a_receipt_comes_from_the_daemon_and_holds_by_its_key(
    daemon: Daemon, sandbox: Sandbox, tmp_path: Path
) -> None:
    answer = json.loads(daemon.cli("call", "fs.list.v1", "--sandbox", sandbox.id, "--json").stdout)
    (tmp_path / "receipt").write_bytes(
        daemon.cli("receipt", "show", answer["receipt"], "--raw").stdout
    )
    (tmp_path / "key").write_bytes(daemon.cli("receipt", "key").stdout)
    verify = ("receipt", "verify", str(tmp_path / "receipt"), "--key", str(tmp_path / "key"))
    assert b"the signature holds" in daemon.cli(*verify).stdout
    gone = daemon.cli("receipt", "show", "req-0000000000000000")
    assert gone.returncode == 125 and b"there is no receipt" in gone.stderr


def test_the_log_tells_of_a_sandbox_from_its_making_to_its_end(daemon: Daemon) -> None:
    with Sandbox.create(url=daemon.url) as made:
        made.run("true")
    done = daemon.cli(
        "audit", "tail", "-n", "30", "--json", "--dir", f"{daemon.folder}/state/audit"
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    kinds = [record["kind"] for record in records if record.get("sandbox") == made.id]
    assert kinds == ["sandbox_created", "admission", "start", "end", "sandbox_ended"]
    (created,) = [
        r for r in records if r.get("sandbox") == made.id and r["kind"] == "sandbox_created"
    ]
    (asked,) = [r for r in records if r.get("request") == created["request"] and r is not created]
    assert (asked["kind"], asked["capability"]) == ("admission", "sandbox.create.v1")


def test_what_a_daemon_is_asked_is_learned_until_it_ends(tmp_path: Path) -> None:
    made = Daemon(tmp_path)
    serve = ["agentd", "serve", "--config", "agentd.toml", "--state", "state"]
    words = [sys.executable, "-m", "agentd", "policy", "learn", "--out", "learned", "--"]
    learn = subprocess.Popen(
        [*words, sys.executable, "-m", *serve], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while made.cli("stats").returncode != 0:
        assert learn.poll() is None
        time.sleep(0.05)
    assert made.cli("call", "fs.list.v1").returncode == 0
    os.killpg(learn.pid, signal.SIGINT)  # as a terminal does for Ctrl-C
    out, _ = learn.communicate(timeout=120)
    assert (learn.returncode, out) == (0, b"learned: 1 call seen, 5 tests\n")
