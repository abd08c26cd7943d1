import json
import os
import socket
import sys
from collections.abc import Iterator

import pytest
from tests.recording import RecordingKernel

from agentd.guest.zygote import messages
from agentd.linux import seccomp
from agentd.model.errors import SandboxError
from agentd.sandbox.backends import child

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_an_interpreter_that_is_not_there(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(SandboxError, match="/no/such/python") as caught:
        child.start_python("agentd.guest.zygote.main", [pair[1]])
    assert os.strerror(2) in caught.value.cause


def test_a_module_that_is_not_there_is_an_unexpected_end(pair: Pair) -> None:
    ours, theirs = pair
    pid = child.start_python("agentd.no_such_module", [theirs])
    theirs.close()
    with pytest.raises(SandboxError, match="the zygote ended unexpectedly"):
        child.receive(ours, 20, "zygote")
    os.waitpid(pid, 0)


def test_silence_has_an_end(pair: Pair) -> None:
    with pytest.raises(SandboxError, match=r"the zygote gave no answer within 0\.01 s"):
        child.receive(pair[0], 0.01, "zygote")
    with pytest.raises(SandboxError, match=r"not ready within 0\.01 s") as caught:
        child.await_ready(pair[0], 0.01)
    assert "file systems that it is made of hangs" in caught.value.cause


def test_a_message_brings_its_descriptors_close_on_exec(pair: Pair) -> None:
    read_end, write_end = os.pipe()
    try:
        socket.send_fds(pair[1], [b'{"ok": true}'], [write_end])
        answer, (fd,) = child.receive(pair[0], 5, "zygote")
        try:
            assert answer == {"ok": True}
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_sandbox_that_could_not_be_built_says_why(pair: Pair) -> None:
    pair[1].send(json.dumps({"error": "proc: Operation not permitted"}).encode())
    with pytest.raises(SandboxError) as caught:
        child.await_ready(pair[0])
    assert caught.value.cause == "proc: Operation not permitted"


def test_a_machine_without_memory_for_filters_gets_the_fix(pair: Pair) -> None:
    """Used up for real, it would be so for everybody on the machine."""
    with pytest.raises(OSError, match=r"bpf_jit_limit") as full:
        seccomp.install(b"", RecordingKernel({"seccomp": [OSError(524, "Unknown error 524")]}))
    messages.refuse(pair[1], None, full.value)
    with pytest.raises(SandboxError) as caught:
        child.await_ready(pair[0])
    assert "bpf_jit_limit" in caught.value.cause
    assert "sysctl -w net.core.bpf_jit_limit=" in caught.value.remediation


def test_a_sandbox_that_died_before_it_was_ready(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(SandboxError) as caught:
        child.await_ready(pair[0])
    assert "before it was ready" in caught.value.cause


def test_reaping() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert child.reap(pid)
    assert child.reap(pid), "it has ended, whoever collected it"
