"""Threat: a secret that a request carries is read later, from what the daemon keeps or shows.

Control: the value of a variable is handed to the sandbox and to nobody else: it is in no record, no
receipt, no approval, no line of the log, whatever quotes it there.
"""

import json
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, Later, running, until

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
    that are kept, journals. (Words of a command, and a sandbox's own variables, are in the store:
    the next daemon must know them.)"""
    everything = used.everything_written()
    assert b"TOKEN" in everything and OF_SANDBOX.encode() in everything
    for secret in (OF_CALL, OF_EXEC):
        assert secret.encode() not in everything


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
