"""What a receipt says of an execution, and what it keeps to itself."""

import time
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.daemon.known import DIGEST, act, handle_of

from agentd.daemon.admission import records
from agentd.daemon.admission.admission import Admission
from agentd.daemon.admission.gate import ran
from agentd.model import context
from agentd.model.decision import Decision
from agentd.model.errors import AgentdError, NotFound
from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Timing, Usage

BEGAN = 1_764_000_000.0


def admitted(where=records.NOWHERE, records=None, **fields):
    decision = Decision(True, ("because",), bundle=DIGEST)
    return Admission(records, act(**fields), decision, BEGAN, where)


def result(**fields):
    known = {
        "request_id": "req-1",
        "status": "failed",
        "exit_code": 3,
        "signal": None,
        "cause": Cause.of(CauseCode.EXITED, "exited with 3"),
        "stdout": b"out",
        "stderr": b"",
        "truncated": False,
        "usage": Usage(wall_ms=5.0, cpu_ms=2.0),
        "timing": Timing(),
        "sandbox": SandboxInfo("sbx-1", "linux", "namespace"),
        "enforcement": handle_of().enforcement,
    }
    return Result(**(known | fields))


def test_of_a_command_it_has_its_end_its_wall_and_its_outputs():
    outputs = {"stdout": records.digest(b"out")}
    found = records.of_result(admitted(), result(), outputs)
    assert (found.principal, found.request, found.capability) == ("alice", "req-1", "shell.exec.v1")
    assert (found.exit_code, found.signal, found.cause.code) == (3, None, "exited")
    assert (found.sandbox, found.backend, found.level) == ("sbx-1", "linux", "namespace")
    assert set(found.enforcement) == {"seccomp"}
    assert found.outputs == outputs
    assert found.usage.cpu_ms == 2.0
    assert (found.decision.allow, found.decision.bundle, found.decision.reasons) == (
        True,
        DIGEST,
        ("because",),
    )
    assert found.started == BEGAN and BEGAN < found.ended <= time.time()


def test_of_a_call_without_a_command_it_is_done():
    found = records.of_value(admitted(ran(handle_of()), name="fs.read.v1"))
    assert (found.cause.code, found.exit_code, found.sandbox) == ("exited", None, "sbx-1")
    nowhere = records.of_value(admitted(name="http.fetch.v1"))
    assert (nowhere.sandbox, nowhere.backend, nowhere.enforcement) == ("", "", {})


class Gone(AgentdError):
    code = "cancelled"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Gone("nobody follows the call"), CauseCode.CANCELLED, "nobody follows"),
        (NotFound("there is no file a"), CauseCode.FAILED, "not_found: there is no file a"),
        (ValueError("hunter2"), CauseCode.FAILED, "ValueError"),
        (KeyboardInterrupt(), CauseCode.FAILED, "KeyboardInterrupt"),
    ],
)
def test_of_a_failure_it_says_which(error, code, said):
    found = records.of_error(admitted(ran(handle_of())), error)
    assert found.cause.code is code and said in found.cause.message
    assert found.outputs == {} and found.sandbox == "sbx-1"
    # What an error that nobody foresaw says may be anything.
    assert "hunter2" not in found.cause.message


@pytest.mark.parametrize("error", [None, ConnectionAbortedError("the upload was given up")])
@pytest.mark.parametrize(
    ("shuts_down", "code", "said"),
    [
        (False, CauseCode.CANCELLED, "nobody waited"),
        (True, CauseCode.INTERRUPTED, "its daemon shut down"),
    ],
)
def test_of_what_is_cut_off_it_says_by_whom(error, shuts_down, code, said):
    written = SimpleNamespace(shuts_down=shuts_down)
    found = records.of_error(admitted(ran(handle_of()), written), error)
    assert found.cause.code is code and said in found.cause.message


@pytest.mark.parametrize(
    ("is_shut", "code"), [(False, CauseCode.CANCELLED), (True, CauseCode.INTERRUPTED)]
)
def test_who_leaves_during_a_shutdown_is_not_cut_off(is_shut, code):
    gone = context.Gone(lambda: is_shut)
    gone.set()
    with context.of_client(gone):
        cut = admitted(ran(handle_of()), SimpleNamespace(shuts_down=True))
        found = records.of_error(cut, None)
    assert found.cause.code is code


def test_the_code_is_the_argv_or_the_source():
    argv = admitted(parameters={"command": "make", "args": ["x"]})
    assert records.of_value(argv).code_digest == records.digest(b'["make","x"]')
    code = admitted(name="python.exec.v1", parameters={"code": "1 + 1"})
    assert records.of_value(code).code_digest == records.digest(b"1 + 1")
    assert records.of_value(admitted()).code_digest == ""


@pytest.mark.parametrize("name", ["stdin", "content"])
def test_the_input_is_what_goes_in(name):
    found = records.of_value(admitted(parameters={name: "data"}))
    assert found.input_digest == records.digest(b"data")
    assert records.of_value(admitted()).input_digest == ""


def test_the_request_is_what_was_asked():
    asked = records.of_value(admitted(parameters={"b": 1, "a": 2}))
    canonical = b'{"capability":"shell.exec.v1","parameters":{"a":2,"b":1}}'
    assert asked.request_digest == records.digest(canonical)


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_any_text_has_a_digest(text):
    """Also one that stands for a name that is no UTF-8."""
    found = records.of_value(
        admitted(parameters={"command": text, "args": [text], "stdin": text}), records.Ran(), {}
    )
    assert records.digest_of([text]) == records.digest_of([text])
    for digest in (found.code_digest, found.request_digest):
        assert digest.startswith("sha256:") and len(digest) == 71


def test_where_there_was_no_sandbox_there_is_no_info():
    assert records.Ran().info() is None
    assert records.Ran("sbx-1", "linux", "namespace").info() == SandboxInfo(
        "sbx-1", "linux", "namespace"
    )
    assert msgspec.to_builtins(ran(handle_of()).fields())["level"] == "namespace"
