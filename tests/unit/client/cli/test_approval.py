"""Over a socket, to the HTTP side with a made-up service behind it."""

import json
import os
import pty
import subprocess
import sys
import time

import msgspec
import pytest
from tests.unit.ingest.conftest import running
from tests.unit.ingest.harness import Running

from agentd.client.cli import main as cli
from agentd.model.api import ApprovalView

__all__ = ["running"]


@pytest.fixture
def asked(running: Running, monkeypatch: pytest.MonkeyPatch) -> ApprovalView:
    monkeypatch.setenv("AGENTD_URL", f"unix:{running.path}")
    now = time.time()
    view = ApprovalView(
        id="apr-1",
        state="pending",
        principal="alice",
        request="req-7",
        asked={"command": ["rm", "\x1b[2Jx"]},
        created=now - 30,
        expires=now + 600,
    )
    running.service.asked["apr-1"] = view
    return view


def test_what_waits_is_listed(
    asked: ApprovalView, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert cli.main(["approval", "ls"]) == 0
    heading, line = capfdbinary.readouterr().out.decode().splitlines()
    assert heading.split() == ["ID", "STATE", "WHO", "ENDS", "ASKED"]
    assert line.split()[:5] == ["apr-1", "pending", "alice", "in", "10m"]
    assert '"rm"' in line and "\x1b" not in line
    assert cli.main(["approval", "ls", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)[0]["id"] == "apr-1"


def test_of_a_connection_its_host_is_told_and_the_id_can_be_copied(
    asked: ApprovalView, running: Running
) -> None:
    """On a terminal of 80 columns, too."""
    id_ = f"apr-{'0123456789' * 3}"[:28]
    named = {"host": "api.example.com", "port": 443, "rule": "ask public"}
    what = {"capability": "network.connect", "parameters": named, "sandbox": "sbx-abcdefghijkl"}
    running.service.asked = {id_: msgspec.structs.replace(asked, id=id_, asked=what)}
    theirs, ours = pty.openpty()
    argv = [sys.executable, "-m", "agentd", "approval", "ls"]
    with open(theirs, "rb", buffering=0) as terminal:
        env = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "xterm"}
        done = subprocess.run(argv, env=env, stdout=ours, check=False)
        said = terminal.read(1 << 16).decode()
        os.close(ours)
    assert done.returncode == 0
    assert said.splitlines()[1].startswith(id_)
    assert "network.connect api.example.com:443 in sbx-abcdefghijkl" in " ".join(
        line[len(id_) :].split("10m")[-1].strip() for line in said.splitlines()[1:]
    )


def test_one_is_shown_whole(asked: ApprovalView, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["approval", "show", "apr-1"]) == 0
    out = capfdbinary.readouterr().out.decode()
    assert "who         alice\n" in out and "request     req-7\n" in out
    assert '"rm",\n' in out and "\x1b" not in out
    assert cli.main(["approval", "show", "apr-1", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out)["asked"] == asked.asked


@pytest.mark.parametrize(("action", "state"), [("approve", "approved"), ("deny", "denied")])
def test_one_is_decided_on(
    asked: ApprovalView,
    running: Running,
    capfdbinary: pytest.CaptureFixture[bytes],
    action: str,
    state: str,
) -> None:
    assert cli.main(["approval", action, "apr-1", "--note", "so be it"]) == 0
    assert capfdbinary.readouterr().out.decode() == f"apr-1 {state}\n"
    found = running.service.asked["apr-1"]
    assert (found.state, found.note) == (state, "so be it")
    assert cli.main(["approval", action, "apr-1", "--json"]) == 125  # it was decided on


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show"], "no approval given (agentd approval ls has their ids)"),
        (["approve"], "no approval given"),
        (["ls", "--note", "x"], "--note is for a decision"),
        (["ls", "apr-1"], "ls takes no approval (agentd approval show apr-1)"),
        (["forget", "apr-1"], "invalid choice"),
    ],
)
def test_wrong_input(
    asked: ApprovalView, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.main(["approval", *words]) == 2
    assert said in capsys.readouterr().err


def test_one_that_is_not_there(asked: ApprovalView, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["approval", "show", "apr-2"]) == 125
    assert "there is no approval 'apr-2'" in capsys.readouterr().err
