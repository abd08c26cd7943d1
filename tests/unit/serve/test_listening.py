import os
import socket
import stat
from pathlib import Path

import pytest

from agentd.daemon.config import Config, load
from agentd.model.errors import Conflict, InvalidInput
from agentd.serve.listening import listen


def config(*addresses: str) -> Config:
    return load(None, {}, [(("listen",), [{"address": a} for a in addresses])])


def passed(monkeypatch: pytest.MonkeyPatch, *socks: socket.socket) -> dict[str, str]:
    """As systemd would, but on other numbers than 3, 4, ..., which are the tests' own."""
    fds = [os.dup(sock.fileno()) for sock in socks]
    assert fds == list(range(fds[0], fds[0] + len(fds)))
    monkeypatch.setattr("agentd.ingest.web.listeners._FIRST_FD", fds[0])
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}


def test_all_that_the_configuration_names_are_bound(tmp_path: Path) -> None:
    path = tmp_path / "run/a.sock"
    found = [one for one, _ in listen(config(f"unix:{path}", "127.0.0.1:0"), {})]
    try:
        assert found[0].name == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert found[1].name.startswith("http://127.0.0.1:")
    finally:
        for one in found:
            one.close()
    assert not path.exists()


def test_one_that_cannot_be_had_leaves_none_behind(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"cannot listen on 127.0.0.1:{port}"):
            listen(config(f"unix:{path}", f"127.0.0.1:{port}"), {})
    assert not path.exists()


def test_a_socket_that_somebody_serves_is_refused(tmp_path: Path) -> None:
    path = f"{tmp_path}/a.sock"
    ((first, _),) = listen(config(f"unix:{path}"), {})
    try:
        with pytest.raises(Conflict, match="somebody listens"):
            listen(config(f"unix:{path}"), {})
    finally:
        first.close()


def test_a_socket_from_systemd_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/a.sock"
    with socket.socket(socket.AF_UNIX) as given:
        given.bind(path)
        given.listen()
        environ = passed(monkeypatch, given)
        found = [one for one, _ in listen(config("127.0.0.1:0", f"unix:{path}"), environ)]
        try:
            assert [one.name.partition(":")[0] for one in found] == ["http", "unix"]
            assert found[1].socket.getsockname() == path
        finally:
            for one in found:
                one.close()
    assert environ == {}
    assert os.path.exists(path), "it is systemd's, for the next start"


def test_a_socket_that_nothing_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        given.listen()
        with pytest.raises(InvalidInput, match=r"which no \[\[listen\]\] names"):
            listen(config(f"unix:{tmp_path}/a.sock"), passed(monkeypatch, given))
    assert not (tmp_path / "a.sock").exists()
