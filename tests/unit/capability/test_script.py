"""The host half, against a sandbox that answers anything."""

import ast
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import msgspec
import pytest

from agentd.capability import script
from agentd.model.capability import CallFailed
from agentd.model.errors import BackendLost, InvalidInput
from agentd.model.result import Cause, CauseCode, Result, SandboxInfo, Timing, Usage
from agentd.model.spec import ExecRequest


class Value(msgspec.Struct):
    number: int


DECODER = msgspec.json.Decoder(Value)
SCRIPTS = sorted(
    entry.name.removesuffix(".py")
    for entry in files("agentd.capability.inside").iterdir()
    if entry.name.endswith(".py") and entry.name != "__init__.py"
)


class Says:
    """An Inside whose python3 says this."""

    workspace = "/w"
    files: Any = None

    def __init__(
        self, stdout: bytes = b"", code: CauseCode = CauseCode.EXITED, exit_code: int | None = 0,
        message: str = "", stderr: bytes = b"",
    ) -> None:  # fmt: skip
        self.asked: list[tuple[ExecRequest, bytes]] = []
        self.result = Result(
            "r", "", exit_code, None, Cause.of(code, message), stdout, stderr, False, Usage(),
            Timing(), SandboxInfo("", "", ""), {},
        )  # fmt: skip

    def path(self, path: str) -> str:
        return path

    def execute(
        self,
        request: ExecRequest,
        stdin: bytes = b"",
        emit: Callable[[str, bytes], None] | None = None,
    ) -> Result:
        self.asked.append((request, stdin))
        return self.result


def run(says: Says, **options: Any) -> Value:
    return script.run(says, "search", {"a": 1}, DECODER, 3.0, **options)


def failed(says: Says) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        run(says)
    return caught.value


def test_what_is_run_and_what_it_is_given() -> None:
    says = Says(b'{"number": 5}')
    assert run(says, max_output=99) == Value(5)
    ((request, stdin),) = says.asked
    assert request.argv[:4] == ("python3", "-I", "-S", "-c") and "import json" in request.argv[4]
    assert (request.timeout, request.output_limit, request.cwd) == (3.0, 99, "/w")
    assert stdin == b'{"a":1}'


def test_its_own_error() -> None:
    error = failed(Says(b'{"error": {"code": "bad_pattern", "message": "odd\\u001b[31m\\n"}}'))
    assert (error.code, error.message) == ("bad_pattern", "odd [31m ")


@pytest.mark.parametrize("code", ["", "Not A Code", "x" * 41, "a\\u001b"])
def test_a_code_that_is_none(code: str) -> None:
    answer = f'{{"error": {{"code": "{code}", "message": "m"}}}}'.encode()
    assert failed(Says(answer)).code == "script_failed"


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"null", b"[]", b"{", b"{}", b'{"number": "5"}', b'{"number": 5} trailing',
        b"\xff\xfe", b'{"number": 5, "error": 7}', b"[" * 100_000, b'{"x":' * 100_000,
    ],
)  # fmt: skip
def test_an_answer_of_any_other_shape(answer: bytes) -> None:
    assert failed(Says(answer)).code == "script_failed"


def test_no_python() -> None:
    error = failed(
        Says(code=CauseCode.SPAWN_FAILED, exit_code=127, message="python3: not found (stage exec)")
    )
    assert error.code == "no_python" and "Python 3.9" in error.remediation


@pytest.mark.parametrize(
    ("code", "exit_code", "message", "expected"),
    [
        (CauseCode.SPAWN_FAILED, 126, "python3: Permission denied", "script_failed"),
        (CauseCode.SPAWN_FAILED, 127, "/w: No such file (stage cwd)", "script_failed"),
        (CauseCode.TIMEOUT, None, "", "timeout"),
        (CauseCode.OUTPUT_LIMIT, None, "", "too_large"),
        (CauseCode.CANCELLED, None, "", "cancelled"),
        (CauseCode.OOM, None, "", "out_of_memory"),
        (CauseCode.PIDS_LIMIT, 1, "", "too_many_processes"),
        (CauseCode.SIGNALLED, None, "", "script_failed"),
        (CauseCode.EXITED, 1, "", "script_failed"),
    ],
)
def test_other_ends(code: CauseCode, exit_code: int | None, message: str, expected: str) -> None:
    says = Says(b'{"number": 5}', code, exit_code, message, b"Traceback\n" + b"x" * 5000 + b"\x1b")
    error = failed(says)
    assert error.code == expected
    assert len(str(error)) < 2000 and "\x1b" not in str(error)


def test_a_lost_sandbox_is_no_failure_of_the_call() -> None:
    with pytest.raises(BackendLost):
        run(Says(code=CauseCode.BACKEND_LOST, exit_code=None))


def test_parameters_that_are_too_large_are_not_sent() -> None:
    says = Says(b'{"number": 5}')
    with pytest.raises(InvalidInput, match="over 5"):
        run(says, max_stdin=5)
    assert says.asked == []


@pytest.mark.parametrize("name", ["../script", "search.py", "", "a/b", "__init__"])
def test_only_scripts_of_ours(name: str) -> None:
    with pytest.raises(ValueError, match="names no script"):
        script.source(name)


# Loaded only where the image has them.
OPTIONAL = {"python_jupyter": {"jupyter_client"}}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_needs_python_3_9_and_its_standard_library_alone(name: str) -> None:
    tree = ast.parse(script.source(name), feature_version=(3, 9))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for module in names:
            if module.startswith("agentd.capability.inside."):
                continue  # a part, which goes along
            known = sys.stdlib_module_names | OPTIONAL.get(name, set())
            assert module.partition(".")[0] in known, module


def test_no_python_in_a_real_sandbox(box: Any) -> None:
    decoder = msgspec.json.Decoder(dict[str, Any])
    with pytest.raises(CallFailed) as caught:
        script.run(box.inside, "search", {}, decoder, 10.0, env={"PATH": "/nowhere"})
    assert caught.value.code == "no_python"


def test_output_without_an_end_in_a_real_sandbox(box: Any) -> None:
    box.put("bin/python3", "#!/bin/sh\nexec yes\n")
    box.sh("chmod 755 bin/python3")
    decoder = msgspec.json.Decoder(dict[str, Any])
    path = f"{box.inside.workspace}/bin:/usr/bin:/bin"
    with pytest.raises(CallFailed) as caught:
        script.run(box.inside, "search", {}, decoder, 30.0, max_output=1000, env={"PATH": path})
    assert caught.value.code == "too_large"
