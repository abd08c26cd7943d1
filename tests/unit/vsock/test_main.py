"""python -m agentd.vsock, as a process of its own."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentd.vsock.__main__ import main

COMMAND = [sys.executable, "-I", "-m", "agentd.vsock"]


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "example" in text
    assert "-device vhost-user-vsock-pci,chardev=vs" in text


def started(folder: Path, *more: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    vhost = folder / "vhost"
    argv = [*COMMAND, "--socket", str(vhost), "--path", str(folder / "v"), *more]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + 120
    while True:
        try:
            sock.connect(str(vhost))
            return process, sock
        except OSError:
            if time.monotonic() > deadline:
                process.kill()
                raise
            time.sleep(0.01)


def test_it_ends_with_the_vmm_and_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(2):  # a stale socket of a killed one is replaced
        process, sock = started(tmp_path)
        sock.close()
        assert process.communicate(timeout=120)[1] == b""
        assert process.returncode == 0
        assert list(tmp_path.iterdir()) == []
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
            stale.bind(str(tmp_path / "v"))


def test_it_says_what_was_broken(tmp_path: Path) -> None:
    process, sock = started(tmp_path)
    with sock:
        sock.sendall(bytes(12))
        error = process.communicate(timeout=120)[1]
    assert error == b"agentd.vsock: vhost-user request 0 has flags 0x0\n"
    assert process.returncode == 1


def test_a_cid_that_is_none_is_named(tmp_path: Path) -> None:
    process, sock = started(tmp_path, "--cid", "2")
    with sock:
        error = process.communicate(timeout=120)[1]
    assert error == b"agentd.vsock: cid 2 is no guest's; use 3 or more\n"
    assert process.returncode == 2


def test_a_file_in_the_way_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v").write_text("precious")
    argv = ["--socket", str(tmp_path / "vhost"), "--path", str(tmp_path / "v")]
    assert main(argv) == 2
    assert (tmp_path / "v").read_text() == "precious"
    assert "Address already in use" in capsys.readouterr().err
