import socket

import pytest

from agentd.client.http import address
from agentd.client.http.address import Address
from agentd.client.http.errors import Unreachable
from agentd.model.errors import InvalidInput


@pytest.mark.parametrize(
    ("url", "found", "text"),
    [
        ("unix:/run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock"),
        ("unix:///run/a.sock", Address(path="/run/a.sock"), "unix:/run/a.sock"),
        ("http://localhost:80/", Address(host="localhost", port=80), "http://localhost:80"),
        ("https://h", Address(host="h", port=443, tls=True), "https://h:443"),
        ("http://[::1]:8080", Address(host="::1", port=8080), "http://[::1]:8080"),
    ],
)
def test_addresses(url, found, text):
    assert address.parse(url, env={}) == found
    assert str(found) == text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "unix:",
        "unix:/a\0b",
        "unix:/" + "x" * 108,
        "h:80",
        "http://h/path",
        "http://h:0",
        "http://h:99999",
        "http://user:secret@h",
        "ftp://h",
        "http://a b",
        "http://h\r\nX: y",
    ],
)
def test_what_is_none(url):
    with pytest.raises(InvalidInput) as caught:
        address.parse(url, env={})
    assert caught.value.remediation


@pytest.mark.parametrize("key", ["a b", "a\nb", "\N{EURO SIGN}"])
def test_a_key_that_would_break_the_header(key):
    with pytest.raises(InvalidInput, match="API key"):
        address.parse("http://h", key, env={})


def test_the_environment_says_where_and_who():
    env = {
        "AGENTD_URL": "https://h",
        "AGENTD_API_KEY": "k",
        "AGENTD_CA": "/ca",
        "AGENTD_CERT": "/c",
    }
    found = address.given(None, env=env)
    assert (found.host, found.api_key, found.ca, found.cert) == ("h", "k", "/ca", "/c")
    assert address.given("unix:/x", "other", env=env) == Address(path="/x", api_key="other")
    assert address.given(None, env={}) is None
    assert address.given(None, env={"AGENTD_URL": ""}) is None
    with pytest.raises(InvalidInput, match="'' is not the address of a daemon"):
        address.given("", env=env)


def test_a_key_is_never_shown():
    found = address.parse("http://h", "agd_secret", env={})
    assert "secret" not in f"{found} {found!r} {found.port}"


def test_the_usual_socket(tmp_path, monkeypatch):
    monkeypatch.setattr(address, "SYSTEM_SOCKET", str(tmp_path / "system.sock"))
    env = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert address.default(env=env) is None
    with pytest.raises(Unreachable, match=r"no daemon at .*agentd serve"):
        address.find(None, env=env)
    (tmp_path / "agentd").mkdir()
    (tmp_path / "agentd" / "agentd.sock").write_text("no socket")
    assert address.default(env=env) is None
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "system.sock"))
        assert address.find(None, env=env).path == str(tmp_path / "system.sock")
        assert address.find("unix:/other", env=env).path == "/other"


def test_a_daemon_whose_queue_is_full_is_one_that_runs(tmp_path, monkeypatch):
    """Else what asks for whatever daemon there is goes on without it, and its policy."""
    path = str(tmp_path / "s")
    monkeypatch.setattr(address, "sockets", lambda env: [path])
    with socket.socket(socket.AF_UNIX) as daemon, socket.socket(socket.AF_UNIX) as waiting:
        daemon.bind(path)
        daemon.listen(0)
        waiting.connect(path)
        assert address.running(env={}) == Address(path=path)
    assert address.running(env={}) is None


def test_what_a_killed_daemon_left_hides_no_other(tmp_path, monkeypatch):
    own, machines = str(tmp_path / "own.sock"), str(tmp_path / "system.sock")
    monkeypatch.setattr(address, "sockets", lambda env: [own, machines])
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(own)
        killed.listen()
    assert address.find(None, env={}).path == own  # alone it is what the error names
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(machines)
        other.listen()
        assert address.find(None, env={}).path == machines
        assert address.default(env={}) == address.running(env={}) == Address(path=machines)
    assert address.find(None, env={}).path == own
    assert address.running(env={}) is None
