"""shell.exec.v1: one command, without a shell in between, its output as it comes."""

from typing import Any

import msgspec

from agentd.capability import script
from agentd.capability.builtin import fs, text
from agentd.capability.port import Call, Inside
from agentd.capability.shape import array, choice, mapping, parameters, string
from agentd.model.capability import About, Bounds, Example, Needs, Outcome
from agentd.model.errors import InvalidInput
from agentd.model.result import CauseCode, Result
from agentd.model.spec import ExecRequest

# Two streams of so many bytes are less than ``Bounds.output`` as base64.
MAX_OUTPUT = 5 << 20
_FIXES = {
    CauseCode.TIMEOUT: script.RAISE_TIMEOUT.format("make the command finish sooner"),
    # No option of the sandbox raises it.
    CauseCode.OUTPUT_LIMIT: "write to a file in the workspace, and fs.read.v1 it in parts: a call"
    f" returns {MAX_OUTPUT >> 20} MiB of a stream at most, or the sandbox's output where less",
}
_MAX_ARGUMENT = 128 << 10  # MAX_ARG_STRLEN of execve(2)
_SCHEMA = parameters(
    ["command"],
    command=string(1, 4095, description="a program on the PATH, or a path; no shell reads it"),
    args=array(string(maximum=_MAX_ARGUMENT), 4096, default=[]),
    env=mapping(
        string(maximum=_MAX_ARGUMENT),
        256,
        "variables beside those of the sandbox",
        propertyNames={"pattern": "^[A-Za-z_][A-Za-z0-9_]*$", "maxLength": 255},
        default={},
    ),
    cwd=fs.PATH,
    stdin=string(default=""),
    stdin_encoding=choice(["utf-8", "base64"], "utf-8"),
    timeout_ms=fs.TIMEOUT_MS,
)
_EXAMPLES = (
    Example(
        "a program and its arguments",
        {"command": "echo", "args": ["hello"]},
        value={"exit_code": 0, "stdout": "hello\n", "stderr": "", "encoding": "utf-8"},
    ),
    Example(
        "a shell, where one is wanted",
        {
            "command": "sh",
            "args": ["-c", "cat; echo $WHO; exit 3"],
            "stdin": "hi ",
            "env": {"WHO": "you"},
        },
        value={"exit_code": 3, "stdout": "hi you\n"},
    ),
    Example(
        "time that runs out is an end like others",
        {"command": "sleep", "args": ["60"], "timeout_ms": 200},
        value={"exit_code": None, "truncated": False},
    ),
    Example(
        "a file of the workspace",
        {"command": "wc", "args": ["-l", "poem.txt"]},
        files={"poem.txt": "one\ntwo\n"},
        value={"exit_code": 0, "stdout": "2 poem.txt\n"},
    ),
)


class ShellExec:
    about = About(
        name="shell.exec.v1",
        summary="run a command",
        schema=_SCHEMA,
        needs=Needs(writes=True),
        bounds=Bounds(timeout=60.0, output=16 << 20),
        examples=_EXAMPLES,
    )

    def run(self, call: Call, inside: Inside) -> Outcome:
        asked = call.parameters
        stdin = text.decoded(asked["stdin"], asked["stdin_encoding"])
        _check_texts(asked)
        request = ExecRequest(
            argv=(asked["command"], *asked["args"]),
            cwd=fs.place(inside, asked["cwd"]) if "cwd" in asked else None,
            env=dict(asked["env"]),
            timeout=call.timeout,
            output_limit=MAX_OUTPUT,
        )
        end = _told(inside.execute(request, stdin, call.emit))
        (stdout, stderr), encoding = text.encoded(end.stdout, end.stderr)
        value: dict[str, Any] = {
            "exit_code": end.exit_code,
            "signal": end.signal,
            "cause": msgspec.to_builtins(end.cause),
            "stdout": stdout,
            "stderr": stderr,
            "encoding": encoding,
            "truncated": end.truncated,
        }
        return Outcome(value, end)


def _told(end: Result) -> Result:
    """Return it with the fix in the words of this capability's parameters."""
    fix = _FIXES.get(end.cause.code)
    if fix is None:
        return end
    cause = msgspec.structs.replace(end.cause, remediation=fix)
    return msgspec.structs.replace(end, cause=cause)


def _check_texts(asked: dict[str, Any]) -> None:
    # The kernel's strings end there: what is behind it would be lost in silence.
    for name, texts in (
        ("command", [asked["command"]]),
        ("args", asked["args"]),
        ("env", asked["env"].values()),
    ):
        if any("\0" in one for one in texts):
            raise InvalidInput(
                f"shell.exec.v1: parameter {name} holds a NUL",
                remediation="send such bytes by stdin",
            )


CAPABILITY = ShellExec()
