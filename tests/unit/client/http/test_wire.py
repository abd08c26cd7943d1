from base64 import b64encode

import msgspec
import pytest

from agentd.client import build
from agentd.client.http import wire
from agentd.model.api import ExecBody, ResultView, SandboxBody
from agentd.model.errors import AgentdError, InvalidInput
from agentd.model.isolation import IsolationLevel
from agentd.model.result import Cause, CauseCode, SandboxInfo, Timing, Usage
from agentd.model.spec import ExecLimits, ExecRequest, Pty


def sent(body):
    """As it arrives."""
    return msgspec.json.decode(msgspec.json.encode(body))


def test_only_what_is_asked_for_is_sent():
    assert sent(build.sandbox_body()) == {}
    assert sent(wire.exec_body(ExecRequest(("ls",)), wait=True)) == {"cmd": ["ls"]}


def test_a_sandbox():
    body = build.sandbox_body(
        isolation=IsolationLevel.MICROVM,
        memory="1G",
        cpus="0.5",
        timeout="2s",
        workspace="/w:cow",
        mounts=["/a:/data"],
        env={"A": "b"},
        labels={"k": "v"},
        ttl="10m",
        snapshot="snp-1",
    )
    assert sent(body) == {
        "isolation": "microvm",
        "memory": 1 << 30,
        "cpus": 0.5,
        "timeout": 2.0,
        "workspace": "/w:cow",
        "mounts": ["/a:/data:ro"],
        "env": {"A": "b"},
        "labels": {"k": "v"},
        "ttl": "10m",
        "snapshot": "snp-1",
    }
    assert msgspec.convert(sent(body), SandboxBody) == body


def test_a_local_path_is_made_absolute_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build.sandbox_body(workspace=".").workspace == f"{tmp_path}:rw"


@pytest.mark.parametrize("wrong", [{"memory": "lots"}, {"net": "some"}, {"user": "me"}])
def test_what_is_wrong_is_told_without_asking(wrong):
    with pytest.raises(InvalidInput):
        build.sandbox_body(**wrong)
    with pytest.raises(TypeError, match="there is no option 'mem'"):
        build.sandbox_body(mem="1M")


def test_a_command():
    request = ExecRequest(
        ("cat",), "/d", {"A": "b"}, True, Pty(1, 2), 3.5, limits=ExecLimits(cpu=1), tag="t"
    )
    body = wire.exec_body(request, wait=False)
    assert sent(body) == {
        "cmd": ["cat"],
        "cwd": "/d",
        "env": {"A": "b"},
        "timeout": 3.5,
        "limits": {
            "cpu": 1,
            "processes": None,
            "file_size": None,
            "open_files": None,
            "address_space": None,
        },
        "stdin_open": True,
        "pty": {"rows": 1, "cols": 2},
        "tag": "t",
        "wait": False,
    }
    assert msgspec.convert(sent(body), ExecBody) == body


def test_stdin_is_any_bytes():
    body = wire.exec_body(ExecRequest(("cat",)), b"\0\xff", wait=True)
    assert (body.stdin, body.stdin_encoding) == (b64encode(b"\0\xff").decode(), "base64")
    assert not body.stdin_open


def view(**fields):
    return ResultView(
        **{
            "request_id": "r",
            "status": "ok",
            "exit_code": 0,
            "signal": None,
            "cause": Cause.of(CauseCode.EXITED, ""),
            "stdout": "",
            "stderr": "",
            "encoding": "utf-8",
            "truncated": False,
            "usage": Usage(),
            "timing": Timing(),
            "sandbox": SandboxInfo("s", "b", "l"),
            "enforcement": {},
        }
        | fields
    )


def test_results():
    assert wire.result(view(stdout="\N{SNOWMAN}")).stdout == "\N{SNOWMAN}".encode()
    coded = view(stdout=b64encode(b"\xff").decode(), stderr="", encoding="base64")
    assert wire.result(coded).stdout == b"\xff"
    assert wire.result(coded, b"own", b"err").stdout == b"own"
    with pytest.raises(AgentdError, match="not base64"):
        wire.result(view(stdout="&", encoding="base64"))
