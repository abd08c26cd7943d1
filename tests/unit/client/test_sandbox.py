import gc
import os
import subprocess
import sys
import warnings

import pytest

from agentd import ExecLimits, Sandbox
from agentd.client.chunk import Chunk
from agentd.client.sandbox import CommandFailed
from agentd.model.errors import InvalidInput, OperationFailed, Refused, SandboxError
from agentd.model.result import CauseCode


@pytest.fixture
def sandbox(backend):
    with Sandbox.create() as made:
        yield made


def test_run(sandbox, backend):
    result = sandbox.run("pwd; echo err >&2; exit 3", env={"A": "1"})
    assert (result.exit_code, result.status) == (3, "failed")
    assert result.stdout.decode() == backend.workspace + "\n"
    assert (result.stderr, result.stderr_text, result.ok) == (b"err\n", "err\n", False)
    assert result.sandbox.id == sandbox.id == sandbox.info.id
    assert result.enforcement["wall"] == sandbox.enforcement["wall"]
    assert sandbox.run(["printenv", "A"], env={"A": "x y"}).text == "x y\n"


def test_stdin_larger_than_any_pipe(sandbox):
    data = b"0123456789abcdef" * (1 << 16)
    assert sandbox.run("cat", stdin=data).stdout == data
    assert sandbox.run("cat", stdin="text").text == "text"
    assert sandbox.run("cat").stdout == b""


def test_check_raises_with_the_result(sandbox):
    assert sandbox.run("true", check=True).status == "ok"
    with pytest.raises(CommandFailed, match="exited with code 4") as caught:
        sandbox.run("echo out; exit 4", check=True)
    assert caught.value.result.text == "out\n"


def test_a_timeout_is_a_result(sandbox):
    result = sandbox.run("sleep 60", timeout="100ms")
    assert result.cause.code is CauseCode.TIMEOUT
    assert sandbox.run("echo still").text == "still\n"


def test_the_sandboxs_timeout_holds_for_every_command(backend):
    with Sandbox.create(timeout=0.1) as sandbox:
        assert sandbox.run("sleep 60").cause.code is CauseCode.TIMEOUT


@pytest.mark.parametrize(
    ("limits", "script", "out"),
    [
        (ExecLimits(open_files=99), "ulimit -n", "99\n"),
        (ExecLimits(file_size=4096), "ulimit -f", "8\n"),  # blocks of 512 bytes
        (ExecLimits(address_space=1 << 30), "ulimit -v", "1048576\n"),  # KiB
        (ExecLimits(cpu=7), "ulimit -t", "7\n"),
        (ExecLimits(processes=1 << 20), "ulimit -p", f"{1 << 20}\n"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits_of_one_command(sandbox, limits, script, out):
    before = sandbox.run(script).text
    if script == "ulimit -p" and before != "unlimited\n" and int(before) < 1 << 20:
        out = before  # a limit can only tighten
    assert sandbox.run(script, limits=limits).text == out
    with sandbox.start(script, limits=limits) as process:
        assert b"".join(chunk.data for chunk in process).decode() == out
    assert sandbox.run(script).text == before


def test_a_limit_of_cpu_time_is_the_cause(sandbox):
    result = sandbox.run("while :; do :; done", limits=ExecLimits(cpu=1), timeout=50)
    assert result.cause.code is CauseCode.TIMEOUT
    assert result.cause.message == "used more than 1 s of CPU time"


def test_a_misspelt_option_is_not_taken_for_none(backend):
    with pytest.raises(TypeError, match="there is no option 'mem'; use one of: isolation"):
        Sandbox.create(mem="1M")
    assert backend.walls == []


def test_a_command_that_is_not_there(sandbox):
    result = sandbox.run(["no-such-program"])
    assert (result.status, result.exit_code) == ("error", 127)
    assert result.cause.code is CauseCode.SPAWN_FAILED


@pytest.mark.parametrize(("counter", "cause"), [("oom", "oom"), ("pids", "pids_limit")])
def test_a_limit_seen_from_outside_is_the_cause(sandbox, backend, counter, cause):
    with sandbox.start("read x; exit 1", stdin=True) as process:
        backend.walls[0].hits[counter] += 1
        process.close_stdin()
        assert process.wait().cause.code == cause


def test_a_wall_that_dies_is_a_result_and_then_an_error(sandbox, backend):
    with sandbox.start("sleep 60") as process:
        backend.walls[0].process.kill()
        assert process.wait().cause.code is CauseCode.BACKEND_LOST
    with pytest.raises(SandboxError):
        sandbox.run("true")


def test_stream_yields_as_it_comes(sandbox):
    stream = sandbox.stream("echo one; read x; echo $x >&2", stdin="two\n")
    with stream:
        with pytest.raises(InvalidInput, match="has not ended"):
            _ = stream.result
        chunks = list(stream)
    assert "".join(map(str, chunks)) == "one\ntwo\n"
    assert [chunk.stream for chunk in chunks] == ["stdout", "stderr"]
    assert stream.result.status == "ok"
    assert stream.result.stdout == b""
    assert list(stream) == []


def test_a_chunk_prints_as_its_text():
    chunk = Chunk("stdout", b"\xffa")
    assert str(chunk) == "\N{REPLACEMENT CHARACTER}a"
    assert repr(chunk) == "Chunk('stdout', b'\\xffa')"


def test_a_process_is_fed_signalled_and_read(sandbox):
    script = (
        "trap 'echo got; exit 5' TERM; echo ready; read x; echo $x; while :; do sleep .01; done"
    )
    with sandbox.start(script, stdin=True) as process:
        chunks = iter(process)
        assert next(chunks).data == b"ready\n"
        assert process.pid
        process.write("hello\n")
        assert next(chunks).data == b"hello\n"
        process.signal(15)
        assert b"".join(c.data for c in chunks if c.stream == "stdout") == b"got\n"
        assert process.result.exit_code == 5


def test_kill(sandbox):
    with sandbox.start("sleep 60") as process:
        process.kill()
        assert process.wait().cause.code is CauseCode.CANCELLED


def test_a_terminal_has_its_size(sandbox):
    with sandbox.start("stty size", pty=(33, 101)) as process:
        assert b"".join(c.data for c in process) == b"33 101\r\n"


def test_files(sandbox, tmp_path):
    files = sandbox.files
    path = str(tmp_path / "sub" / "a.txt")
    assert files.write(path, "text", parents=True) == 4
    assert (files.read(path, 1, 2), files.read_text(path)) == (b"ex", "text")
    assert b"".join(files.read_iter(path)) == b"text"
    assert [entry.name for entry in files.list(str(tmp_path / "sub"))] == ["a.txt"]
    files.mkdir(str(tmp_path / "new"))
    files.move(path, str(tmp_path / "new" / "b.txt"))
    assert files.stat(str(tmp_path / "new" / "b.txt")).size == 4
    files.remove(str(tmp_path / "new"), recursive=True)
    assert sorted(os.listdir(tmp_path)) == ["sub"]
    with pytest.raises(OperationFailed, match="No such file or directory"):
        files.read(path)


def test_a_cassette_is_no_standard_output(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="the cassette -: it is a file of its own, never"):
        Sandbox.create(net="record:-,example.com")
    assert (backend.walls, os.listdir()) == ([], [])


def test_changes_and_apply(backend, tmp_path):
    with Sandbox.create(workspace=f"{tmp_path}:cow") as sandbox:
        assert sandbox.changes() == ("A new", "D gone")
        sandbox.apply()
        assert backend.walls[0].applied == 1


def test_changes_of_a_plain_workspace_are_refused(sandbox):
    with pytest.raises(Refused, match=r"no copy-on-write workspace.*PATH:cow"):
        sandbox.changes()


def test_ping(sandbox):
    assert sandbox.ping()["unix_ns"] > 0


def test_close_is_idempotent_and_final(backend):
    sandbox = Sandbox.create()
    sandbox.close()
    sandbox.kill()
    assert "ended" in repr(sandbox)
    with pytest.raises(SandboxError, match="is ended"):
        sandbox.run("true")


def test_a_forgotten_sandbox_is_destroyed_with_a_warning(backend):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sandbox = Sandbox.create()
        name = sandbox.id
        del sandbox
        gc.collect()
    messages = [str(w.message) for w in caught if w.category is ResourceWarning]
    assert any(f"sandbox {name} was never closed" in message for message in messages)
    assert backend.walls[0].process.returncode is not None


def test_forgotten_commands_keep_no_descriptors(sandbox):
    sandbox.run("true")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of their connections
        for _ in range(4):
            sandbox.start("exec sleep 600", stdin=True)
            gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_wrong_input_makes_nothing(backend):
    with pytest.raises(InvalidInput):
        Sandbox.create(memory="lots")
    assert backend.walls == []


def test_the_facade_imports_nothing():
    code = "import sys, agentd; print([m for m in sys.modules if m.startswith('agentd.')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout == b"[]\n"


def test_a_parameter_that_is_itself_named_parameters_is_told_its_place(sandbox):
    """As of sqlite.query.v1; by name it is taken for the mapping of all of them."""
    with pytest.raises(InvalidInput, match="named parameters stands in there, too"):
        sandbox.call("sqlite.query.v1", path="a.db", sql="select ?", parameters=[1])
