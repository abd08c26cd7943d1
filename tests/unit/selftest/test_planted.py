"""What is laid out is really there to be found, and is gone afterwards."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.selftest.planted import VARIABLE, plant
from agentd.selftest.prelude import source


def test_the_secrets_are_where_they_are_said_to_be() -> None:
    with plant() as planted:
        first, second = planted.halves()
        assert first + second == planted.marker
        for path, mode in ((planted.secret, 0o666), (planted.private, 0o600)):
            assert Path(path).read_text() == planted.marker
            assert Path(path).stat().st_mode & 0o777 == mode
        assert os.environ[VARIABLE] == planted.marker
        assert planted.marker.encode() in Path(f"/proc/{planted.holder}/cmdline").read_bytes()
        assert planted.marker.encode() in Path(f"/proc/{planted.holder}/environ").read_bytes()


def test_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "the caller's own")
    with plant() as planted:
        assert os.environ[VARIABLE] == planted.marker
    assert os.environ[VARIABLE] == "the caller's own"
    assert not Path(planted.folder).exists()
    assert planted.program is None or not Path(planted.program).exists()
    assert not Path(f"/proc/{planted.holder}").exists()
    if planted.segment is not None:
        assert ctypes.CDLL(None).shmget(planted.segment, 1, 0) == -1


def test_the_listeners_tell_who_came() -> None:
    with plant() as planted:
        assert planted.arrived() == set()
        tcp, udp, abstract, path, log = planted.listeners()
        socket.create_connection(("127.0.0.1", int(tcp)), 5).close()
        for address in ("\0" + abstract, path):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("127.0.0.1", int(udp)))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", log)
        assert planted.arrived() == {"tcp", "udp", "abstract", "path", "log"}
        assert planted.arrived() == set()
        for each in planted.own:
            with socket.socket(each.family, each.type) as sock:
                sock.connect(each.getsockname())
                sock.send(b"x")
            assert planted.arrived() == {"own"}


def test_the_service_that_rules_name_answers_whoever_speaks() -> None:
    with plant() as planted:
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", planted.granted), 5) as sock:
                sock.sendall(b"x")
                assert sock.recv(100) == b"granted"
        assert planted.rule() == f"host.agentd.internal:{planted.granted}"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", planted.granted), 5)


def test_a_signal_to_the_holder_is_seen() -> None:
    with plant() as planted:
        assert not planted.signalled()
        os.kill(planted.holder, signal.SIGUSR1)
        assert planted.signalled()


def test_a_process_that_carries_the_marker_is_seen() -> None:
    with plant() as planted:
        assert planted.carriers() == []
        code = "import sys; print(flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, planted.marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as left:
            assert left.stdout is not None
            left.stdout.readline()
            assert planted.carriers() == [left.pid]
            left.communicate()


def test_a_held_descriptor_is_told(tmp_path: Path) -> None:
    """The attack for which no wall can be built without its control."""
    from agentd.selftest.attacks.agent import ATTACKS

    script = source(ATTACKS[0].script)
    with (tmp_path / "file").open("w") as file:
        argv = [sys.executable, "-I", "-c", script]
        plain = subprocess.run(argv, capture_output=True, text=True, check=True)
        fd = file.fileno()
        leaky = subprocess.run(argv, capture_output=True, text=True, check=True, pass_fds=(fd,))
    assert "held=[]\n" in plain.stdout
    assert f"held=[{fd}]\n" in leaky.stdout
