import socket
import threading

import pytest

from agentd.model.errors import BackendLost, InvalidInput
from agentd.transport.dial import dial


@pytest.fixture
def monitor(tmp_path):
    """``monitor(answers)``: a listener that answers each connection's CONNECT in turn."""
    path = str(tmp_path / "v.sock")
    threads = []
    asked = []

    def start(answers):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(8)

        def serve():
            with listener:
                for answer in answers:
                    stream, _ = listener.accept()
                    with stream:
                        asked.append(stream.recv(100))
                        stream.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return path, asked

    yield start
    for thread in threads:
        thread.join(120)


def test_hybrid_asks_once_and_leaves_the_agents_bytes(monitor):
    path, asked = monitor([b"OK 1073741824\nhello"])
    with dial(f"hybrid:{path}:5000", timeout=120) as stream:
        stream.setblocking(True)
        assert stream.recv(100) == b"hello"
    assert asked == [b"CONNECT 5000\n"]


def test_hybrid_tries_again_until_the_agent_listens(monitor):
    path, asked = monitor([b"", b"", b"OK 1\n"])
    dial(f"hybrid:{path}:5000", timeout=120).close()
    assert len(asked) == 3


@pytest.mark.parametrize("answer", [b"NO\n", b"x" * 100, b"OK"])
def test_hybrid_gives_up_at_the_deadline(monitor, answer):
    path, _ = monitor([answer])
    with pytest.raises(BackendLost, match="no agent answers"):
        dial(f"hybrid:{path}:5000", timeout=0.1)


def test_unix_waits_for_the_socket(tmp_path):
    path = str(tmp_path / "a.sock")
    with pytest.raises(BackendLost, match="No such file"):
        dial(f"unix:{path}", timeout=0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        timer = threading.Timer(0.05, lambda: listener.listen(1))
        timer.start()
        dial(f"unix:{path}", timeout=120).close()
        timer.join()


@pytest.mark.parametrize(
    "address", ["", "unix:", "tcp:1", "hybrid:/x", "hybrid:/x:y", "vsock:a:5000", "hybrid::5"]
)
def test_an_address_that_is_none(address):
    with pytest.raises(InvalidInput):
        dial(address, timeout=0)
