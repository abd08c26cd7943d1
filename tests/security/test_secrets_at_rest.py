"""Threat: a secret that a request carries is read later, from what the daemon keeps or shows.

Control: the value of a variable is handed to the sandbox and to nobody else: it is in no record, no
receipt, no approval, no line of the log, whatever quotes it there.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.security.daemons import Answer, Daemon, Later, running, until

from agentd.daemon.store.migrations import STEPS, migrate

OF_COMMAND = "s3cret-of-the-command"
OF_SANDBOX = "s3cret-of-the-sandbox"
OF_CALL = "s3cret-of-the-call"
OF_EXEC = "s3cret-of-an-exec"
SECRETS = (OF_COMMAND, OF_SANDBOX, OF_CALL, OF_EXEC)
# It quotes what it can reach: names of variables, arguments, what was asked.
POLICY = """
decision := {"allow": false, "reasons": [said]} if {
	input.parameters.command == "/denied"
} else := {"allow": true, "reasons": [said], "obligations": {"approve": true}} if {
	input.parameters.command == "/approved"
} else := {"allow": 1 / 0 > 0} if {
	input.parameters.command == "/undecided"
} else := {"allow": true, "reasons": [said]}

default said := "nothing to quote"

said := concat(" ", array.concat([input.parameters.command], input.parameters.env))
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(policy=POLICY) as made:
        yield made


@pytest.fixture(scope="module")
def used(daemon: Daemon) -> Daemon:
    """One that has seen each of them in every way that there is."""
    alice, bob = daemon.key("alice"), daemon.key("bob", "approve", "read")
    box = daemon.sandbox(alice, env={"INNER": OF_SANDBOX})
    path, env = f"/v1/sandboxes/{box}/exec", {"TOKEN": OF_COMMAND, "ONLY": OF_EXEC}
    seen = daemon.ask(
        "POST", path, {"cmd": 'test -n "$TOKEN$INNER" && echo got', "env": env}, key=alice
    )
    assert seen.json["stdout"] == "got\n"
    for command in ("/denied", "/undecided", f"/{OF_COMMAND}", f"/bin/{OF_SANDBOX}"):
        # The last two quote a secret, as a program that cannot be found does.
        daemon.ask("POST", path, {"cmd": [command], "env": env}, key=alice)
        asked = {"command": command, "env": {"TOKEN": OF_CALL, "ALSO": OF_COMMAND}}
        daemon.call("shell.exec.v1", asked, sandbox=box, key=alice)
        daemon.call("shell.exec.v1", asked, key=alice, create={"env": {"INNER": OF_SANDBOX}})
    daemon.ask(
        "POST", path, {"cmd": ["true"], "env": {"TOKEN": OF_COMMAND}, "cwd": "/no"}, key=alice
    )
    asked = {"command": "/approved", "env": {"TOKEN": OF_CALL}}
    later = Later(lambda: daemon.call("shell.exec.v1", asked, sandbox=box, key=alice))

    def waiting() -> list[str]:
        found = daemon.ask("GET", "/v1/approvals", key=bob).json
        assert not any(secret in json.dumps(found) for secret in SECRETS)
        assert any("TOKEN" in json.dumps(view) for view in found) or not found
        return [view["id"] for view in found if view["state"] == "pending"]

    until(lambda: bool(waiting()))
    daemon.ask("POST", f"/v1/approvals/{waiting()[0]}/decide", {"allow": True}, key=bob)
    later.answer()
    for body in ({"cmd": "true", "env": env}, {"cmd": "true", "env": env, "wait": False}):
        daemon.ask("POST", path, body, key=alice, Idempotency_Key=f"k{len(body)}")
    daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=alice)
    return daemon


def test_no_record_has_one(used: Daemon) -> None:
    assert used.call("fs.list.v1", {"path": "/"}).status == 200
    records = used.records()
    assert {"admission", "denial", "undecided", "start", "end"} <= {r.kind for r in records}
    text = str(records)
    assert "TOKEN" in text  # it was quoted there
    for secret in SECRETS:
        assert secret not in text


def test_no_receipt_has_one(used: Daemon) -> None:
    from base64 import b64decode

    ends = used.records(kind="end")
    assert len(ends) > 5
    for end in ends:
        envelope = used.ask("GET", f"/v1/receipts/{end.request}")
        payload = b64decode(envelope.json["payload"])
        for secret in SECRETS:
            assert secret.encode() not in envelope.body + payload


def test_the_log_has_none(used: Daemon) -> None:
    assert used.log.count(b"\n") > 20
    for secret in SECRETS:
        assert secret.encode() not in used.log


def test_what_was_the_value_of_a_variable_alone_is_nowhere(used: Daemon) -> None:
    """In no file of all that a thief of the disk would read: records, receipts, approvals, answers
    that are kept, journals. (Words of a command are in the store: the next daemon must know
    them.)"""
    everything = used.everything_written()
    assert b"TOKEN" in everything
    for secret in (OF_CALL, OF_EXEC):
        assert secret.encode() not in everything


POOLED = """
[[pool]]
image = "default"
min = 1
"""
OF_STDIN, OF_OUTPUT = "s3cret-of-stdin", "s3cret-of-the-output"


@pytest.mark.parametrize("config", ["pool = []", POOLED], ids=["cold", "pooled"])
def test_a_sandboxs_variables_and_recorded_answers_lie_in_no_file(config: str) -> None:
    """While it runs, when the daemon was killed, and afterwards; the next daemon knows both."""
    with running() as daemon:
        path = daemon.folder / "agentd.toml"
        text = path.read_text()
        path.write_text(f"{config}\n{text}" if "=" in config.splitlines()[0] else text + config)
        daemon.stop()
        daemon.start()
        box = daemon.sandbox(env={"INNER": OF_SANDBOX})
        cold = daemon.sandbox(env={"INNER": OF_SANDBOX}, memory="200M")
        body = {
            "cmd": "cat; echo s3cret-of-$REST",
            "stdin": OF_STDIN,
            "env": {"REST": "the-output"},
        }

        def ask(sandbox: str) -> Answer:
            where = f"/v1/sandboxes/{sandbox}/exec"
            return daemon.ask("POST", where, body, Idempotency_Key=f"k-{sandbox}")

        firsts = {id_: ask(id_) for id_ in (box, cold)}
        for seen in firsts.values():
            assert seen.json["stdout"] == f"{OF_STDIN}{OF_OUTPUT}\n"

        def check() -> None:
            for path in sorted(daemon.state.rglob("*")):
                # What processes write is kept as journals, and told as such.
                if path.is_file() and "journals" not in path.parts:
                    data = path.read_bytes()
                    for secret in (OF_SANDBOX, OF_STDIN, OF_OUTPUT):
                        assert secret.encode() not in data, path

        check()
        for kill in (True, False):
            daemon.stop(kill=kill)
            check()
            daemon.start()
            for id_, first in firsts.items():
                plain = {"cmd": "echo $INNER", "env": {}}
                seen = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", plain)
                assert seen.json["stdout"] == f"{OF_SANDBOX}\n"
                again = ask(id_)
                assert again.body == first.body, again.body
                assert again.headers["idempotency-replayed"] == "true"
        for id_ in firsts:
            daemon.ask("DELETE", f"/v1/sandboxes/{id_}")
        check()
        daemon.stop()
        check()
        daemon.start()


def test_what_a_daemon_before_wrote_down_is_wiped(tmp_path: Path) -> None:
    """Also what it had deleted, and what lies in the store's log."""
    daemon = Daemon(tmp_path)
    daemon.state.mkdir(mode=0o700)
    store = sqlite3.connect(daemon.state / "store.db", isolation_level=None)
    store.execute("PRAGMA journal_mode = WAL")
    store.execute("PRAGMA secure_delete = OFF")  # Debian's SQLite has it on, others have not
    migrate(store, STEPS[:3])
    spec = json.dumps({"env": {"INNER": OF_SANDBOX, "MORE": "x" * 3000}})
    for number in range(40):
        ended = (None, "ready") if number < 20 else (1.0, "ended")
        row = (f"sbx-{number}", "p", spec, "linux", "namespace", ended[1], 1.0, None, "{}")
        save = json.dumps({"wall": f"wall-{number}"})
        store.execute(
            "INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, save, ended[0])
        )
        body = (OF_OUTPUT + "y" * 3000).encode()
        answer = ("uid:0", f"k{number}", "d", "done", 1.0, 9e9, 200, "{}", body, len(body))
        store.execute("INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", answer)
    store.execute("DELETE FROM sandboxes WHERE id < 'sbx-15'")
    store.close()
    assert OF_SANDBOX.encode() in (daemon.state / "store.db").read_bytes()
    daemon.start()
    try:
        assert daemon.is_up, daemon.log
        everything = daemon.everything_written()
        assert OF_SANDBOX.encode() not in everything and OF_OUTPUT.encode() not in everything
        answer = daemon.ask("POST", "/v1/sandboxes", {}, Idempotency_Key="k0")
        assert answer.status in (409, 422)
    finally:
        daemon.end()


def test_without_the_key_of_the_runtime_directory_a_repeat_is_told_as_interrupted() -> None:
    with running() as daemon:
        keys = _seals(daemon)
        assert len(keys) == 1 and keys[0].stat().st_mode & 0o777 == 0o600
        assert not any(p.suffix == ".seal" for p in daemon.state.rglob("*"))
        body = {"sandbox": {}, "exec": {"cmd": "echo hi"}}
        first = daemon.ask("POST", "/v1/run", body, Idempotency_Key="k")
        assert first.json["stdout"] == "hi\n"
        daemon.stop()
        keys[0].unlink()  # as a start of the machine does
        daemon.start()
        again = daemon.ask("POST", "/v1/run", body, Idempotency_Key="k")
        assert (again.status, again.code) == (409, "idempotency_interrupted")
        assert "the machine was started again" in again.json["cause"]
        other = daemon.ask("POST", "/v1/run", body, Idempotency_Key="other")
        assert other.status == 200
        daemon.stop()
        daemon.start()
        assert daemon.ask("POST", "/v1/run", body, Idempotency_Key="other").body == other.body
        _seals(daemon)[0].unlink()


@pytest.mark.parametrize("how", ["others may read it", "a link to it"])
def test_a_key_that_others_could_have_put_there_opens_nothing(how: str, tmp_path: Path) -> None:
    with running() as daemon:
        (key,) = _seals(daemon)
        body = {"sandbox": {}, "exec": {"cmd": "echo hi"}}
        assert daemon.ask("POST", "/v1/run", body, Idempotency_Key="k").status == 200
        daemon.stop()
        if how == "a link to it":
            elsewhere = tmp_path / "key"
            elsewhere.write_bytes(key.read_bytes())
            elsewhere.chmod(0o600)
            key.unlink()
            key.symlink_to(elsewhere)
        else:
            key.chmod(0o644)
        daemon.start()
        again = daemon.ask("POST", "/v1/run", body, Idempotency_Key="k")
        assert (again.status, again.code) == (409, "idempotency_interrupted"), again.body
        (new,) = _seals(daemon)
        assert not new.is_symlink() and new.stat().st_mode & 0o777 == 0o600
        new.unlink()


def test_each_file_that_is_kept_is_its_owners_alone_whatever_the_umask() -> None:
    """By itself, and not by the folder alone that it is in."""
    with running(prefix=["sh", "-c", 'umask 0; exec "$@"', "sh"]) as daemon:
        box = daemon.sandbox(env={"INNER": OF_SANDBOX}, labels={"a": "b"})
        path = f"/v1/sandboxes/{box}/exec"
        said = daemon.ask("POST", path, {"cmd": "echo told"}, Idempotency_Key="k")
        assert said.json["stdout"] == "told\n"
        assert daemon.ask("POST", path, {"cmd": "echo kept", "wait": False}).status in (201, 202)
        assert daemon.ask("POST", f"/v1/sandboxes/{box}/snapshot").status == 201
        assert daemon.ask("PUT", "/v1/secrets/TOKEN", {"value": OF_CALL}).status == 200
        assert daemon.ask("POST", "/v1/volumes", {"name": "v"}).status == 201
        assert daemon.key("alice")
        until(lambda: any((daemon.state / "journals").rglob("*.*")))
        places = [daemon.state, *daemon.state.rglob("*")]
        # A key to verify by is everybody's; who may read what is in a volume, its sandboxes say.
        kept = [p for p in places if not {"volumes", "data"} <= set(p.parts) and p.suffix != ".pub"]
        assert len(kept) > 20
        wide = {str(p): oct(p.lstat().st_mode) for p in kept if p.lstat().st_mode & 0o077}
        assert wide == {}
        for seal in _seals(daemon):
            seal.unlink()


def test_a_supervisor_has_nothing_of_its_daemons_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It outlives the daemon, and builds what may be broken out of."""
    monkeypatch.setenv("OPERATORS_TOKEN", OF_CALL)
    with running() as daemon:
        assert daemon.process is not None
        daemon.sandbox()
        supervisor = int((daemon.state / "supervisor.sock.lock").read_text())
        for pid, has in ((daemon.process.pid, True), (supervisor, False)):
            assert (OF_CALL.encode() in Path(f"/proc/{pid}/environ").read_bytes()) is has


def test_what_a_policy_says_is_cut_where_it_is_written_down(daemon: Daemon) -> None:
    asked = {"command": "/denied", "env": {f"{'N' * 60}{n}": "x" for n in range(50)}}
    assert daemon.call("shell.exec.v1", asked, key=daemon.key("carol")).code == "policy_denied"
    denial = daemon.until_recorded(kind="denial", principal="carol")
    assert 0 < sum(map(len, denial.fields["reasons"])) <= 500


def _seals(daemon: Daemon) -> list[Path]:
    """The key of its state directory, whose path stands behind it in the file."""
    where = str(daemon.state.resolve()).encode()
    places = (Path("/run/agentd"), Path(f"/dev/shm/agentd-{os.getuid()}"))
    files = [p for place in places if place.is_dir() for p in place.glob("*.seal")]
    return [p for p in files if p.read_bytes().endswith(where)]


@pytest.mark.parametrize("secret", ["agd_abcdefghijkl_" + "a" * 52, "Bearer " + "z" * 20])
def test_credentials_by_their_look_are_hidden_where_nobody_called_them_secret(
    used: Daemon, secret: str
) -> None:
    answer = used.call("fs.list.v1", {"path": secret})
    request = answer.headers["x-request-id"]
    used.until_recorded(kind="end", request=request)
    assert secret not in str(used.records(request=request))
    assert secret.encode() not in used.log


def test_the_key_that_was_used_is_nowhere(used: Daemon) -> None:
    key = used.key("alice")
    everything = used.everything_written()
    assert key.encode() not in everything and key.rpartition("_")[2].encode() not in everything
