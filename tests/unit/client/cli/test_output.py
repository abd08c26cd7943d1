import base64
import json

import pytest

from agentd.client.cli import output
from agentd.model.enforcement import Control
from agentd.model.errors import Unavailable
from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Timing, Usage

FIELDS = [
    "request_id",
    "status",
    "exit_code",
    "signal",
    "cause",
    "stdout",
    "stderr",
    "encoding",
    "truncated",
    "usage",
    "timing",
    "sandbox",
    "enforcement",
]


def result(code="exited", exit_code=None, signal=None, stdout=b"", stderr=b""):
    return Result(
        request_id="req-1",
        status="ok",
        exit_code=exit_code,
        signal=signal,
        cause=Cause.of(CauseCode(code), "as it went"),
        stdout=stdout,
        stderr=stderr,
        truncated=False,
        usage=Usage(1.5, 0.5, 4096),
        timing=Timing(1.0, 2.0, 3.0),
        sandbox=SandboxInfo("sbx-a", "linux", "namespace"),
        enforcement={"memory": Control("128M", True, "cgroup")},
    )


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (result("exited", 0), 0),
        (result("exited", 3), 3),
        (result("signalled", None, 9), 137),
        (result("signalled", None, 15), 143),
        (result("timeout", None, 9), 124),
        (result("spawn_failed", 126), 126),
        (result("spawn_failed", 127), 127),
        (result("oom", None, 9), 137),
        (result("oom"), 137),
        (result("oom", 1), 1),
        (result("output_limit"), 137),
        (result("backend_lost"), 125),
    ],
)
def test_exit_codes(end, code):
    assert output.exit_code(end) == code


def test_the_object_has_its_fields_in_order():
    line = output.as_json(result("exited", 0, stdout="é\n".encode(), stderr=b"err"))
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    value = json.loads(line)
    assert list(value) == FIELDS
    assert (value["stdout"], value["stderr"], value["encoding"]) == ("é\n", "err", "utf-8")
    cause = {"code": "exited", "message": "as it went", "remediation": "", "infrastructure": False}
    assert value["cause"] == cause
    assert value["usage"] == {"wall_ms": 1.5, "cpu_ms": 0.5, "peak_memory_bytes": 4096}
    assert value["timing"] == {"setup_ms": 1.0, "exec_ms": 2.0, "total_ms": 3.0}
    assert value["sandbox"] == {"id": "sbx-a", "backend": "linux", "level": "namespace"}
    control = {"asked": "128M", "enforced": True, "detail": "cgroup"}
    assert value["enforcement"] == {"memory": control}


def test_bytes_that_are_no_text_are_base64():
    value = json.loads(output.as_json(result(stdout=b"\xff\0", stderr=b"plain")))
    assert value["encoding"] == "base64"
    assert base64.b64decode(value["stdout"]) == b"\xff\0"
    assert base64.b64decode(value["stderr"]) == b"plain"


def test_changes_join_only_a_copy_on_write_workspaces_object():
    assert json.loads(output.as_json(result(), ("A new",)))["changes"] == ["A new"]
    assert json.loads(output.as_json(result(), ()))["changes"] == []


def test_an_error_is_the_same_object():
    error = Unavailable("no backend", cause="linux: off", remediation="linux: turn it on")
    value = json.loads(output.error_json(error))
    assert list(value) == FIELDS
    assert value["status"] == "error"
    assert value["cause"] == {
        "code": "unavailable",
        "message": "no backend: linux: off",
        "remediation": "linux: turn it on",
        "infrastructure": True,
    }


def test_only_an_end_that_needs_words_is_explained(capfd):
    for code in ("exited", "signalled"):
        output.explain(result(code, 1).cause)
    assert capfd.readouterr().err == ""
    output.explain(result("oom").cause)
    line = "agentd run: oom: as it went (raise --memory, or make the command use less)\n"
    assert capfd.readouterr().err == line


def test_changes_are_listed_without_control_codes(capfd):
    output.list_changes(("A a\x1b[2Jb", "D é"), applied=False)
    assert capfd.readouterr().err == (
        "agentd run: 2 changes in the workspace, not written to the host; --apply does that\n"
        "  A a\\x1b[2Jb\n  D é\n"
    )
    output.list_changes(("A a",), applied=True)
    assert "1 change in the workspace, written to the host" in capfd.readouterr().err
    output.list_changes((), applied=False)
    assert capfd.readouterr().err == "agentd run: no changes in the workspace\n"
