"""A guest that speaks protocol v1 alone, asked as callers ask: by the pipeline, one at a time."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.vm import v1_only

from agentd.daemon.pipeline import Pipeline
from agentd.model.errors import GuestError, Refused
from agentd.model.principal import local
from agentd.model.result import CauseCode, SandboxInfo
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.transport.guest import Guest

ME = local("me")
# As the first agent is: one connection after the other, and a directory of "" is none.
AGENT = f"""
import json, socket, sys
sys.path.insert(0, {str(Path(v1_only.__file__).parent)!r})
import v1_only
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    with connection, connection.makefile("rwb") as stream:
        try:
            for line in stream:
                answer = v1_only.answer(line)
                stream.write(json.dumps(answer, separators=(",", ":")).encode() + b"\\n")
                stream.flush()
        except OSError:
            continue
"""


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    path = str(tmp_path / "agent.sock")

    def connect() -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(path)
        return stream

    with subprocess.Popen(
        [sys.executable, "-c", AGENT, path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"ready\n"
        guest = Guest(connect, passes_descriptors=False, handshake_timeout=60.0)
        yield guest
        guest.close()
        os.killpg(agent.pid, 9)


@pytest.fixture
def sandbox(guest: Guest) -> Any:
    return SimpleNamespace(
        spec=SandboxSpec(),
        wall=SimpleNamespace(workspace="/", counters=dict),
        guest=guest,
        begin_command=lambda: guest,
        end_command=lambda: None,
        info=SandboxInfo("sbx-a", "qemu", "microvm"),
        unreported_ms=0.0,
        why=None,
        counters={},
        enforcement={},
    )


Ask = Callable[..., Any]


@pytest.fixture
def ask(sandbox: Any) -> Ask:
    pipeline = Pipeline(SimpleNamespace())  # type: ignore[arg-type]

    def ask(*argv: str, stdin: bytes = b"", **fields: Any) -> Any:
        return pipeline.execute(ME, sandbox, ExecRequest(argv, **fields), stdin)

    return ask


def test_commands_run_in_the_root_directory(ask: Ask) -> None:
    for cwd, expected in ((None, b"/\n"), (".", b"/\n"), ("/etc", b"/etc\n"), ("etc", b"/etc\n")):
        assert ask("pwd", cwd=cwd).stdout == expected


@pytest.mark.parametrize("text", ["text\n", "\u00e9" * 3_000_000, "x" * 10_000_000])
def test_stdin_that_is_text_goes_along(ask: Ask, text: str) -> None:
    assert ask("cat", stdin=text.encode()).stdout == text.encode()


def test_stdin_that_comes_in_pieces_is_gathered(sandbox: Any) -> None:
    pipeline = Pipeline(SimpleNamespace())  # type: ignore[arg-type]
    with pipeline.start(ME, sandbox, ExecRequest(("cat",), stdin=True)) as execution:
        reader, writer = os.pipe()
        os.write(writer, b"x")
        # It waits for what its caller waits for, and does not begin.
        assert execution.step(None, (reader,)) == ([], [reader])
        assert execution.step(0.01) == ([], [])
        os.close(reader)
        os.close(writer)
        for piece in ("a\u00e9".encode()[:2], "a\u00e9".encode()[2:], b"\n"):
            execution.write(piece)
        execution.close_stdin()
        assert b"".join(data for _, data in execution.chunks()) == "a\u00e9\n".encode()
        assert execution.finish().exit_code == 0


def test_one_that_never_begins_leaves_its_connection(sandbox: Any, ask: Ask) -> None:
    pipeline = Pipeline(SimpleNamespace())  # type: ignore[arg-type]
    with pipeline.start(ME, sandbox, ExecRequest(("cat",), stdin=True)) as execution:
        with pytest.raises(Refused, match="streamed stdin"):
            execution.step()
        execution.kill()
        assert execution.finish().cause.code is CauseCode.CANCELLED
    with pipeline.start(ME, sandbox, ExecRequest(("cat",), stdin=True)):
        pass
    assert ask("echo", "hi").stdout == b"hi\n"


@pytest.mark.parametrize(
    "fields",
    [{"argv": "\udcff"}, {"cwd": "/\udcff"}, {"env": {"A": "\udcff"}}, {"env": {"\udcff": ""}}],
)
def test_names_that_are_no_text_are_refused_by_name(ask: Ask, fields: dict[str, Any]) -> None:
    argv = fields.get("argv", "hi")
    fields = {name: value for name, value in fields.items() if name != "argv"}
    with pytest.raises(Refused, match="protocol v1, which has no arguments, variables or dir"):
        ask("echo", argv, **fields)
    assert ask("echo", "hi").stdout == b"hi\n"


@pytest.mark.parametrize("data", [b"\xff", b"cut \xc3"])
def test_binary_stdin_is_refused_by_name(ask: Ask, data: bytes) -> None:
    with pytest.raises(Refused, match="protocol v1, which has no binary stdin"):
        ask("cat", stdin=data)
    assert ask("echo", "hi").stdout == b"hi\n"


def test_what_a_command_beyond_its_time_does_to_the_next_is_named(
    ask: Ask, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentd.transport.v1.GRACE", 0.0)
    assert ask("sleep", "1000", timeout=0.1).cause.code is CauseCode.TIMEOUT
    monkeypatch.setattr(guest._pool, "_timeout", 0.5)
    with pytest.raises(GuestError, match="ran longer than its time limit may still run"):
        ask("echo", "hi")
