"""What a daemon's configuration and its policy say of a network, of a sandbox that lives."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.conftest import OrdinaryUser
from tests.integration.test_network_of_a_sandbox import _greet
from tests.integration.test_profiles import reload
from tests.security.daemons import running

from agentd import Refused, Sandbox
from agentd.daemon.store.records import SandboxRecord
from agentd.daemon.store.sqlite import SqliteStore
from agentd.model.egress import EgressBounds

_DIAL = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], 5432), 20) as sock:
        print(sock.recv(100).decode())
except OSError:
    print("refused")
"""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the host's, which greets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_greet, args=(server,))
        thread.start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _dials(sandbox: Sandbox, host: str) -> str:
    done = sandbox.run(["python3", "-c", _DIAL, host], check=True)
    return done.stdout.decode().strip()


def _config(port: int, name: str, *allow: str) -> str:
    return f"""
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = {list(allow)}
[[egress.host]]
name = "{name}"
address = "127.0.0.1:{port}"
"""


def test_other_rules_are_within_the_configuration_of_now(port: int) -> None:
    """Not of when the sandbox was made: what it allows, forbids, and which hosts are its own."""
    config = _config(port, "old.my.internal", "old.my.internal:5432")
    with (
        running(config) as daemon,
        Sandbox.create(url=daemon.url, net=["old.my.internal:5432"]) as box,
    ):
        assert _dials(box, "old.my.internal") == "hello"
        new = ("public", "new.my.internal:5432", "!bad.my.internal")
        daemon.configure(_config(port, "new.my.internal", *new))
        reload(daemon)
        assert _dials(box, "old.my.internal") == "hello"  # what was granted goes on
        view = box.network.set(["new.my.internal:5432", "*.my.internal"])
        assert "!bad.my.internal" in {rule["text"] for rule in view.rules}
        assert _dials(box, "new.my.internal") == "hello"
        assert _dials(box, "old.my.internal") == "refused"
        assert _dials(box, "bad.my.internal") == "refused"
        rows = box.network.connections().connections
        assert [row.reason for row in rows if row.name == "bad.my.internal"] == [
            "denied by !bad.my.internal"
        ]
        daemon.configure(_config(port, "new.my.internal", "pypi"))
        reload(daemon)
        with pytest.raises(Refused, match=r"new\.my\.internal"):
            box.network.set(["new.my.internal:5432"])
        assert _dials(box, "new.my.internal") == "hello"


_DIAL_HOST = """
import socket, sys
for port in sys.argv[1:]:
    try:
        with socket.create_connection(("host.agentd.internal", int(port)), 20) as sock:
            print(sock.recv(100).decode())
    except OSError:
        print("refused")
"""


@pytest.mark.parametrize("where", ["embedded", "daemon"])
def test_one_port_of_this_machine_is_reached_by_its_own_name(port: int, where: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, contextlib.ExitStack() as stack:
        rule, beside = f"host.agentd.internal:{port}", other.getsockname()[1]
        place: dict[str, Any] = {"embedded": True}
        if where == "daemon":
            config = f'''[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["public", "private", "{rule}"]
'''
            place = {"url": stack.enter_context(running(config)).url}
            with pytest.raises(Refused, match=str(beside)):
                Sandbox.create(net=[f"host.agentd.internal:{beside}"], **place)
        box = stack.enter_context(Sandbox.create(net=[rule, "*.agentd.internal:*"], **place))
        dial = ["python3", "-c", _DIAL_HOST, str(port), str(beside)]
        assert box.run(dial, check=True).stdout == b"hello\nrefused\n"
        rows = [row for row in box.network.connections().connections if row.port]
        assert {(row.port, row.allowed, row.rule) for row in rows} == {
            (port, True, rule),
            (beside, False, ""),
        }
        if where == "daemon":  # what is explained is what happened
            for number, code in ((port, 0), (beside, 1)):
                words = ["net", "explain", f"host.agentd.internal:{number}", box.id]
                argv = [sys.executable, "-m", "agentd", *words, "--url", place["url"]]
                assert subprocess.run(argv, capture_output=True, check=False).returncode == code
        box.network.set([])
        assert box.run(dial, check=True).stdout == b"refused\nrefused\n"


POLICY = """
decision := {"allow": false, "reasons": ["by what is asked for"]} if {
	"npm" in input.parameters.egress
} else := {"allow": false, "reasons": ["by what it has"]} if {
	"crates" in input.sandbox.egress
	input.capability.name == "shell.exec.v1"
} else := {"allow": true}
"""


def test_a_policy_decides_about_rules_where_they_are_given_and_had() -> None:
    config = '[sandbox]\nnetworks = ["none", "restricted"]\n[egress]\nallow = ["public"]\n'
    with running(config, policy=POLICY) as daemon:
        refused = daemon.ask("POST", "/v1/sandboxes", {"net": ["npm"]})
        assert refused.code == "policy_denied"
        assert "by what is asked for" in refused.json["cause"]
        box = daemon.sandbox(net=["pypi"])
        where = f"/v1/sandboxes/{box}/network"
        refused = daemon.ask("PUT", where, {"net": ["npm"]})
        assert refused.code == "policy_denied"
        assert daemon.ask("GET", where).json["egress"] == ["pypi"]
        command = f"/v1/sandboxes/{box}/exec"
        assert daemon.ask("POST", command, {"cmd": ["true"]}).status == 200
        assert daemon.ask("PUT", where, {"net": ["crates"]}).status == 200
        refused = daemon.ask("POST", command, {"cmd": ["true"]})
        assert refused.code == "policy_denied"
        assert "by what it has" in refused.json["cause"]
        assert daemon.ask("DELETE", f"/v1/sandboxes/{box}").status == 204


def test_whose_scope_was_taken_away_changes_no_rules() -> None:
    """Of a sandbox of their own, that they made while they had it."""
    config = '[sandbox]\nnetworks = ["none", "restricted"]\n[egress]\nallow = ["public"]\n'
    with running(config) as daemon:
        had = daemon.key("bob", "create", "read", "egress")
        has = daemon.key("bob", "create", "read")
        box = daemon.sandbox(key=had, net=["pypi"])
        where = f"/v1/sandboxes/{box}/network"
        assert daemon.ask("GET", where, key=has).json["egress"] == ["pypi"]
        refused = daemon.ask("PUT", where, {"net": ["npm"]}, key=has)
        assert (refused.status, refused.code) == (403, "forbidden")
        assert daemon.ask("PUT", where, {"net": ["npm"]}, key=had).status == 200


@pytest.mark.parametrize(
    ("allow", "egress"),
    [
        (("pypi",), ("pypi",)),
        (("own.my.internal:5432", "!own.my.internal"), ("own.my.internal:5432",)),
    ],
)
def test_rules_that_a_daemon_died_over_are_those_that_its_sandbox_has(
    port: int, allow: tuple[str, ...], egress: tuple[str, ...]
) -> None:
    """It had written down what it was about to let hold, by a configuration that no longer allows
    what holds."""
    config = _config(port, "own.my.internal", "own.my.internal:5432", "pypi")
    with (
        running(config) as daemon,
        Sandbox.create(url=daemon.url, net=["own.my.internal:5432"]) as box,
    ):
        daemon.stop(kill=True)
        daemon.configure(_config(port, "own.my.internal", *allow))
        with contextlib.closing(SqliteStore(str(daemon.state))) as store:
            (record,) = store.find(SandboxRecord)
            spec = msgspec.structs.replace(
                record.spec, egress=egress, egress_bounds=EgressBounds(allow)
            )
            before = msgspec.structs.replace(record, spec=spec)
            store.write(lambda transaction: transaction.put(before))
        daemon.start()
        with Sandbox.connect(box.id, url=daemon.url) as found:
            told = found.network.get()
            assert told.egress == ("own.my.internal:5432",)
            assert [rule["allow"] for rule in told.rules] == [True]
            assert _dials(found, "own.my.internal") == "hello"
            assert found.network.set(egress).egress == egress
            assert _dials(found, "own.my.internal") == "refused"


_EMBEDDED = """
import sys
from agentd import Sandbox
with Sandbox.create(net=[]) as sandbox:
    dial = ["python3", "-c", sys.argv[1], "own.my.internal"]
    told = [sandbox.run(dial, check=True).text.strip()]
    sandbox.network.set("own.my.internal:5432")
    told.append(sandbox.run(dial, check=True).text.strip())
    (fork,) = sandbox.fork()
    with fork:
        told.append(fork.run(dial, check=True).text.strip())
print(*told)
"""


def test_without_a_daemon_its_own_hosts_are_those_of_its_configuration(
    port: int, as_user: OrdinaryUser
) -> None:
    """Of root and of others, whatever it would have a daemon grant; one that is wrong is told."""
    config = as_user.home / "agentd.toml"
    config.write_text(_config(port, "own.my.internal"))
    config.chmod(0o644)
    run = (*("run", "--embedded", "--net", "own.my.internal:5432"), "--", "python3", "-c", _DIAL)
    as_user.env["AGENTD_CONFIG"] = str(config)
    for ask in (as_user.agentd, _as_ourselves(config)):
        done = ask(*run, "own.my.internal")
        assert done.stdout.split() == [b"hello"], done.stderr
    done = as_user.python("-c", _EMBEDDED, _DIAL)
    assert done.stdout.split() == [b"refused", b"hello", b"hello"], done.stderr
    config.write_text("[egress]\nalow = []\n")
    wrong = as_user.agentd(*run, "own.my.internal")
    assert wrong.returncode == 2 and b"alow" in wrong.stderr, wrong


def test_a_configuration_that_one_may_not_read_says_nothing(
    port: int, as_user: OrdinaryUser
) -> None:
    """In the usual places, where an administrator's is; one that is named has to be read."""
    usual = as_user.home / "config" / "agentd"
    usual.mkdir(parents=True)
    (usual / "agentd.toml").write_text(_config(port, "own.my.internal"))
    (usual / "agentd.toml").chmod(0o000)
    as_user.env["XDG_CONFIG_HOME"] = str(as_user.home / "config")
    run = ("run", "--embedded", "--net", "pypi", "--", "echo", "ran")
    assert as_user.agentd(*run).stdout == b"ran\n"
    as_user.env["AGENTD_CONFIG"] = str(usual / "agentd.toml")
    told = as_user.agentd(*run)
    assert told.returncode == 2 and b"agentd.toml" in told.stderr, told


def _as_ourselves(config: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    env = os.environ | {"AGENTD_CONFIG": str(config)}
    return lambda *words: subprocess.run(
        [sys.executable, "-m", "agentd", *words], env=env, capture_output=True, check=False
    )
