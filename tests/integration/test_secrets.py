"""Secrets that a daemon keeps, and those of a request: whose they are, and where they never are."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.security.daemons import Daemon, Later, running, until

from agentd import Client, InvalidInput, NotFound, Sandbox
from agentd.client import secrets
from agentd.client.cli.main import main
from agentd.daemon.secrets import MAX_FILE

VALUE = "sk-ant-api03-OnlyTheTestsOwnKey0123456789"
OTHER = "ghp_AnotherOneOfTheTests9876543210"
_NETS = '[sandbox]\nnetworks = ["none", "host", "restricted"]\n[egress]\nallow = ["public"]\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running(_NETS) as made:
        yield made


@pytest.fixture
def token(daemon: Daemon) -> Iterator[str]:
    assert daemon.ask("PUT", "/v1/secrets/TOKEN", {"value": VALUE}).status == 200
    yield "TOKEN"
    daemon.ask("DELETE", "/v1/secrets/TOKEN")


def test_one_is_set_listed_and_removed_and_never_read_back(daemon: Daemon) -> None:
    made = daemon.ask("PUT", "/v1/secrets/TOKEN", {"value": VALUE})
    assert made.status == 200
    assert made.json["name"] == "TOKEN"
    listed = daemon.ask("GET", "/v1/secrets")
    assert [view["name"] for view in listed.json] == ["TOKEN"]
    assert daemon.ask("GET", "/v1/secrets/TOKEN").status == 405
    again = daemon.ask("PUT", "/v1/secrets/TOKEN", {"value": OTHER})
    assert again.json["created"] == made.json["created"]
    assert again.json["changed"] > made.json["changed"]
    for answer in (made, listed, again):
        assert VALUE.encode() not in answer.body and OTHER.encode() not in answer.body
    assert daemon.ask("DELETE", "/v1/secrets/TOKEN").status == 204
    assert daemon.ask("DELETE", "/v1/secrets/TOKEN").status == 404
    assert daemon.ask("GET", "/v1/secrets").json == []
    kinds = [r.kind for r in daemon.records() if r.fields.get("name") == "TOKEN"]
    assert kinds == ["secret_set", "secret_set", "secret_removed"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKEN", "short"),
        ("TOKEN", "a value\r\nX-Admin: yes"),
        ("TOKEN", "x" * 8193),
        ("PATH", VALUE),
        ("1TOKEN", VALUE),
        ("T" * 65, VALUE),
    ],
)
def test_what_cannot_be_kept_is_told_without_its_value(
    daemon: Daemon, name: str, value: str
) -> None:
    answer = daemon.ask("PUT", f"/v1/secrets/{name}", {"value": value})
    assert (answer.status, answer.code) == (400, "invalid_input")
    assert value.encode() not in answer.body
    assert b"value" not in daemon.ask("GET", "/v1/secrets").body


def test_they_are_of_ones_own_and_take_a_scope(daemon: Daemon, token: str) -> None:
    wanted = {"secrets": [f"{token}@api.example.com"]}
    plain = daemon.key("bob", "run", "create", "read", "egress")
    for method, path, body in (
        ("PUT", "/v1/secrets/MINE", {"value": VALUE}),
        ("GET", "/v1/secrets", None),
        ("DELETE", "/v1/secrets/TOKEN", None),
        ("POST", "/v1/sandboxes", wanted),
    ):
        assert daemon.ask(method, path, body, key=plain).status == 403, path
    bob = daemon.key("bob", "run", "create", "read", "egress", "secrets")
    assert daemon.ask("GET", "/v1/secrets", key=bob).json == []
    refused = daemon.ask("POST", "/v1/sandboxes", wanted, key=bob)
    nobodys = {"secrets": ["NOBODYS@api.example.com"]}
    assert refused.status == 404
    told = daemon.ask("POST", "/v1/sandboxes", nobodys, key=bob).body
    assert told == refused.body.replace(b"TOKEN", b"NOBODYS")
    assert daemon.ask("DELETE", "/v1/secrets/TOKEN", key=bob).status == 404
    assert daemon.ask("GET", "/v1/secrets").json


def test_the_file_is_its_users_alone_and_outlives_the_daemon() -> None:
    with running(_NETS) as daemon:
        assert daemon.ask("PUT", "/v1/secrets/TOKEN", {"value": VALUE}).status == 200
        (file,) = Path(daemon.folder).glob("**/secrets.json")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.with_suffix(".json.new").write_bytes(b"what a daemon that was killed left")
        daemon.stop(kill=True)
        daemon.start()
        assert daemon.ask("GET", "/v1/secrets").json[0]["name"] == "TOKEN"
        assert daemon.ask("PUT", "/v1/secrets/OTHER", {"value": OTHER}).status == 200
        assert len(json.loads(file.read_bytes())["secrets"]) == 2
        assert not file.with_suffix(".json.new").exists()


def test_there_are_so_many_of_a_principal(daemon: Daemon) -> None:
    key = daemon.key("hoarder", "secrets")
    for n in range(128):
        made = daemon.ask("PUT", f"/v1/secrets/T{n}", {"value": f"{n:08d}"}, key=key)
        assert made.status == 200
    full = daemon.ask("PUT", "/v1/secrets/ONE_MORE", {"value": VALUE}, key=key)
    assert (full.status, full.code) == (429, "quota_exceeded")
    assert daemon.ask("PUT", "/v1/secrets/T0", {"value": VALUE}, key=key).status == 200
    large = daemon.key("large", "secrets")
    for n in range(32):
        made = daemon.ask("PUT", f"/v1/secrets/T{n}", {"value": "x" * 8192}, key=large)
        assert made.status == 200
    full = daemon.ask("PUT", "/v1/secrets/ONE_MORE", {"value": VALUE}, key=large)
    assert full.status == 429


def test_there_are_no_more_than_can_be_read_at_a_start() -> None:
    value = "v" * (MAX_FILE - 200)
    many = {"version": 1, "secrets": [_kept_by("bob", "A", value)]}
    with running() as daemon:
        daemon.stop()
        path = daemon.state / "secrets.json"
        path.write_text(json.dumps(many))
        path.chmod(0o600)
        daemon.start()
        refused = daemon.ask("PUT", "/v1/secrets/B", {"value": "b" * 400})
        assert (refused.status, refused.code) == (429, "full"), refused.body
        daemon.stop()
        daemon.start()
        assert daemon.is_up, daemon.log[-2000:]


def _kept_by(principal: str, name: str, value: str) -> dict[str, object]:
    return {
        "principal": principal,
        "name": name,
        "value": {"text": value},
        "created": 0.0,
        "changed": 0.0,
    }


def test_a_sandbox_has_a_placeholder_and_its_report_and_rules_say_so(
    daemon: Daemon, token: str
) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"secrets": [f"{token}@api.example.com"]})
    assert made.status == 201, made.body
    assert made.json["net"] == "restricted"
    assert made.json["egress"] == ["api.example.com:443"]
    detail = made.json["enforcement"]["network"]["detail"]
    assert detail.endswith("; secret TOKEN at api.example.com")
    ran = daemon.ask("POST", f"/v1/sandboxes/{made.json['id']}/exec", {"cmd": "echo $TOKEN"})
    standing = ran.json["stdout"].strip()
    assert len(standing) == len(VALUE)
    assert standing.startswith("sk-ant-api03-")
    assert standing != VALUE
    assert daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}").status == 204


def test_no_command_has_a_variable_in_the_place_of_a_placeholder(
    daemon: Daemon, token: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """``exec -e NAME`` would put the caller's own value where the secret is not to be."""
    monkeypatch.setenv(token, VALUE)
    made = daemon.ask("POST", "/v1/sandboxes", {"secrets": [f"{token}@api.example.com"]}).json["id"]
    said = f"{token} is a variable and a secret"
    for wait in (True, False):
        body = {"cmd": "env", "env": {token: VALUE}, "wait": wait}
        answer = daemon.ask("POST", f"/v1/sandboxes/{made}/exec", body)
        assert (answer.status, answer.code) == (400, "invalid_input"), answer.body
        assert said.encode() in answer.body and VALUE.encode() not in answer.body
    call = {"capability": "shell.exec.v1", "sandbox": made}
    call["parameters"] = {"command": "env", "env": {token: VALUE}}
    assert said.encode() in daemon.ask("POST", "/v1/call", call).body
    assert main(["exec", "-e", token, "--url", daemon.url, made, "--", "env"]) == 2
    out, err = capfd.readouterr()
    assert said in err and VALUE not in out
    assert main(["exec", "--url", daemon.url, made, "--", "printenv", token]) == 0
    standing = capfd.readouterr().out.strip()
    body = {"cmd": "true", "env": {token: standing}}  # as one who passes on all that there is
    assert daemon.ask("POST", f"/v1/sandboxes/{made}/exec", body).status == 200
    daemon.ask("DELETE", f"/v1/sandboxes/{made}")


def test_hosts_are_opened_beside_rules_that_do_not_name_them(daemon: Daemon) -> None:
    secret = {"name": "T", "hosts": ["api.example.com"], "value": VALUE}
    for net, egress in (
        (["pypi"], ["pypi", "api.example.com:443"]),
        (["api.example.com"], ["api.example.com"]),
        (["!api.example.com:443"], ["!api.example.com:443"]),
        (["api.example.com:80"], ["api.example.com:80", "api.example.com:443"]),
    ):
        made = daemon.ask("POST", "/v1/sandboxes", {"secrets": [secret], "net": net})
        assert made.json["egress"] == egress
        daemon.ask("DELETE", f"/v1/sandboxes/{made.json['id']}")
    hosts = daemon.ask("POST", "/v1/sandboxes", {"secrets": [secret], "net": "host"})
    assert hosts.status == 400
    assert b"network of rules" in hosts.body


def test_a_request_that_cannot_be_met_is_told_without_the_value(daemon: Daemon) -> None:
    good = {"name": "T", "hosts": ["api.example.com"], "value": VALUE}
    for wanted, status in (
        ({"secrets": [good], "env": {"T": "mine"}}, 400),
        ({"secrets": [good, good]}, 400),
        ({"secrets": [{**good, "value": "short"}]}, 400),
        ({"secrets": [{**good, "value": "hunter2hunter2"}]}, 400),
        ({"secrets": [{**good, "hosts": []}]}, 400),
        ({"secrets": [{**good, "hosts": ["*.example.com"]}]}, 400),
        ({"secrets": [{**good, "unknown": 1}]}, 400),
        ({"secrets": ["T=env:HOME@api.example.com"]}, 400),
        ({"secrets": [f"T={VALUE}@api.example.com"]}, 400),
        ({"secrets": [f"{VALUE}@api.example.com"]}, 400),
        ({"secrets": [{**good, "name": VALUE}]}, 400),
        ({"secrets": [good], "backend": "landlock"}, 403),
        ({"secrets": [{**good, "name": f"T{n}"} for n in range(33)]}, 400),
        ({"secrets": [{**good, "name": f"T{n}", "value": VALUE * 190} for n in range(5)]}, 400),
    ):
        answer = daemon.ask("POST", "/v1/sandboxes", wanted)
        assert answer.status in (status, 501 if status == 403 else status), answer.body
        assert VALUE.encode() not in answer.body
        assert b"hunter2" not in answer.body
    assert VALUE.encode() not in daemon.log


def test_the_value_is_in_no_file_of_the_daemon_and_in_no_process_of_the_sandbox(
    daemon: Daemon,
) -> None:
    secret = {"name": "T", "hosts": ["api.example.com"], "value": OTHER}
    made = daemon.ask("POST", "/v1/sandboxes", {"secrets": [secret], "labels": {"a": "b"}})
    box = made.json["id"]
    path = f"/v1/sandboxes/{box}"
    ran = daemon.ask("POST", f"{path}/exec", {"cmd": "env; cat /proc/*/environ /proc/*/cmdline"})
    inside = ran.body
    told = [daemon.ask("GET", path).body, daemon.ask("GET", f"{path}/network").body]
    receipt = daemon.ask("GET", f"/v1/receipts/{ran.json['receipt']}").body
    forked = daemon.ask("POST", f"{path}/fork", {"count": 1})
    assert forked.status in (200, 201), forked.body
    again = daemon.ask(
        "POST", f"/v1/sandboxes/{forked.json[0]['id']}/exec", {"cmd": "echo $T"}
    ).json["stdout"]
    assert again.strip() == _standing(ran.json["stdout"])
    kept = daemon.ask("POST", f"{path}/snapshot")
    assert kept.status in (200, 201), kept.body
    gone = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept.json["id"]})
    assert gone.status == 403
    assert b"give it again" in gone.body
    anew = daemon.ask("POST", "/v1/sandboxes", {"snapshot": kept.json["id"], "secrets": [secret]})
    assert anew.status == 201, anew.body
    same = daemon.ask("POST", f"/v1/sandboxes/{anew.json['id']}/exec", {"cmd": "echo $T"})
    assert same.json["stdout"].strip() == again.strip()
    for text in (inside, receipt, forked.body, kept.body, anew.body, *told, daemon.log):
        assert OTHER.encode() not in text
    assert OTHER.encode() not in daemon.everything_written()
    for each in (box, forked.json[0]["id"], anew.json["id"]):
        daemon.ask("DELETE", f"/v1/sandboxes/{each}")


def test_a_snapshots_secrets_may_be_given_anew_from_elsewhere_and_for_other_hosts(
    daemon: Daemon, token: str
) -> None:
    made = daemon.ask("POST", "/v1/sandboxes", {"secrets": [f"{token}@api.example.com"]})
    path = f"/v1/sandboxes/{made.json['id']}"
    before = daemon.ask("POST", f"{path}/exec", {"cmd": "printenv TOKEN"}).json["stdout"]
    kept = daemon.ask("POST", f"{path}/snapshot").json["id"]
    boxes = [made.json["id"]]
    given = {"name": token, "value": OTHER}
    for asked, hosts in (
        ({**given, "hosts": ["api.example.com"]}, "api.example.com"),  # it was the daemon's
        ({**given, "hosts": ["api.example.net:8443"]}, "api.example.net:8443"),
        (f"{token}@api.example.org,header=Authorization: Bearer {{}}", "api.example.org"),
    ):
        wanted = {"snapshot": kept, "secrets": [asked]}
        anew = daemon.ask("POST", "/v1/sandboxes", wanted)
        assert anew.status == 201, anew.body
        boxes.append(anew.json["id"])
        assert f"secret {token} at {hosts}" in anew.json["enforcement"]["network"]["detail"]
        at = f"/v1/sandboxes/{anew.json['id']}/exec"
        assert daemon.ask("POST", at, {"cmd": "printenv TOKEN"}).json["stdout"] == before
    wanted = {"snapshot": kept, "secrets": [f"{token}@169.254.169.254"]}
    assert daemon.ask("POST", "/v1/sandboxes", wanted).status == 400
    for each in boxes:
        daemon.ask("DELETE", f"/v1/sandboxes/{each}")


def _standing(env: str) -> str:
    return next(line for line in env.splitlines() if line.startswith("T=")).removeprefix("T=")


_NARROW = """
[sandbox]
networks = ["none", "restricted"]
[egress]
allow = ["api.example.com", "evil.example.com", "parked.example.com"]
[[template]]
name = "open"
net = "api.example.com"
[[template]]
name = "shut"
"""
_RULES = """
hosts contains host if {
	some secret in input.sandbox.secrets
	some host in secret.hosts
}

decision := {"allow": false, "reasons": ["not there"]} if {
	"evil.example.com" in hosts
} else := {"allow": true, "obligations": {"approve": true}} if {
	"parked.example.com" in hosts
} else := {"allow": true}
"""


@pytest.fixture(scope="module")
def judging() -> Iterator[Daemon]:
    with running(_NARROW, policy=_RULES) as made:
        yield made


@pytest.mark.parametrize(
    ("wanted", "status", "words"),
    [
        ({"template": "open"}, 201, ""),
        ({"template": "shut"}, 400, "a network without api.example.com"),
        ({"hosts": ["evil.example.com"]}, 403, "not there"),
        ({"hosts": ["db.example.com"]}, 403, "db.example.com:443"),
    ],
)
def test_templates_policies_and_what_may_be_granted_say_which_hosts_there_are(
    judging: Daemon, wanted: dict[str, Any], status: int, words: str
) -> None:
    hosts = wanted.get("hosts", ["api.example.com"])
    body = {k: v for k, v in wanted.items() if k != "hosts"}
    body["secrets"] = [{"name": "T", "hosts": hosts, "value": VALUE}]
    made = judging.ask("POST", "/v1/sandboxes", body)
    assert made.status == status, made.body
    assert words.encode() in made.body
    assert VALUE.encode() not in made.body + judging.everything_written()


def test_a_request_that_is_parked_for_an_approval_is_kept_without_the_value(
    judging: Daemon,
) -> None:
    bob = judging.key("bob", "create", "egress")
    wanted = {"secrets": [{"name": "T", "hosts": ["parked.example.com"], "value": VALUE}]}
    asked = Later(lambda: judging.ask("POST", "/v1/sandboxes", wanted, key=bob))
    until(lambda: bool(judging.ask("GET", "/v1/approvals").json))
    (parked,) = judging.ask("GET", "/v1/approvals").json
    told = json.dumps(parked)
    assert "parked.example.com" in told and VALUE not in told
    assert VALUE.encode() not in judging.everything_written()
    path = f"/v1/approvals/{parked['id']}/decide"
    assert judging.ask("POST", path, {"allow": True}).status == 200
    assert asked.answer().status == 201
    assert VALUE.encode() not in judging.everything_written()


def test_the_command_line_never_takes_a_value_as_an_argument(daemon: Daemon) -> None:
    argv = [sys.executable, "-m", "agentd", "secret"]
    env = {**os.environ, "MY_KEY": OTHER}

    def ran(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        url = ("--url", daemon.url)
        return subprocess.run(
            [*argv, *words, *url], input=stdin, env=env, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    assert ran("set", "A", stdin=f"{VALUE}\n").stdout == "A\n"
    assert ran("set", "B", "--from-env", "MY_KEY").stdout == "B\n"
    unset = ran("set", "B", "--from-env", "NOT_SET")
    assert unset.returncode == 2
    assert "NOT_SET is not set" in unset.stderr
    unnamed = ran("set", "B", "--from-env", "")
    assert "secret B: its environment variable has no name (is a" in unnamed.stderr
    told = ran("set", "A", VALUE)
    assert (told.returncode, VALUE in told.stderr) == (2, False)
    assert "secret A is not taken from an argument" in told.stderr
    names = json.loads(ran("ls", "--json").stdout)
    assert [each["name"] for each in names] == ["A", "B"]
    assert json.loads(ran("rm", "A", "B", "--json").stdout) == {"removed": ["A", "B"]}
    again = ran("rm", "A")
    assert (again.returncode, again.stderr) == (
        125,
        "agentd secret: there is no secret 'A' (agentd secret ls lists yours)\n",
    )


def test_the_sdk_has_the_noun(daemon: Daemon) -> None:
    with Client(daemon.url) as client:
        assert client.secrets.set("TOKEN", VALUE).name == "TOKEN"
        with Sandbox.create(url=daemon.url, secrets=["TOKEN@api.example.com"]) as sandbox:
            said = sandbox.run("echo $TOKEN", check=True).stdout.strip()
            assert len(said) == len(VALUE)
        assert [each.name for each in client.secrets.list()] == ["TOKEN"]
        client.secrets.delete("TOKEN")
        with pytest.raises(NotFound, match="there is no secret"):
            client.secrets.delete("TOKEN")
        with pytest.raises(InvalidInput):
            client.secrets.set("TOKEN", "short")
        with pytest.raises(InvalidInput, match="value is of type int, and takes text"):
            client.secrets.set("TOKEN", 5)  # type: ignore[arg-type]


def test_what_a_command_leaves_behind_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", VALUE)
    running = tmp_path / "pid"
    command = f"sleep 1000 & echo $! > {running}; printenv MY_KEY"
    try:
        assert secrets.read([f"T=command:{command}@api.example.com"])[0].value == VALUE
        os.kill(int(running.read_text()), 0)
    finally:
        os.kill(int(running.read_text()), signal.SIGKILL)


def test_without_a_daemon_values_are_of_the_environment_files_and_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: "pytest.CaptureFixture[bytes]"
) -> None:
    monkeypatch.setenv("MY_KEY", VALUE)
    monkeypatch.delenv("AGENTD_URL", raising=False)
    (tmp_path / "key").write_text(VALUE + "\n")
    for source in ("=env:MY_KEY", f"=file:{tmp_path}/key", "=command:printenv MY_KEY"):
        asked = [f"MY_KEY{source}@api.example.com"]
        with Sandbox.create(embedded=True, secrets=asked) as sandbox:
            said = sandbox.run("echo $MY_KEY", check=True).stdout.decode().strip()
            assert said.startswith("sk-ant-api03-")
            assert said != VALUE
            with pytest.raises(InvalidInput, match="MY_KEY is a variable and a secret"):
                sandbox.run("true", env={"MY_KEY": VALUE})
    with Sandbox.create(embedded=True, secrets=["MY_KEY@api.example.com"]) as sandbox:
        assert VALUE.encode() not in sandbox.run("echo $MY_KEY", check=True).stdout
    for asked, words in (
        (["NO_KEY@api.example.com"], "no variable NO_KEY is set"),
        (["T=env:NO_KEY@api.example.com"], "NO_KEY is not set here"),
        (["T=file:/nowhere@api.example.com"], "cannot be read"),
        (["T=command:exit 3@api.example.com"], "exit code 3"),
        (["T=command:printf 'a\\nb of two lines'@api.example.com"], "no header"),
        (["T=command:yes; exit 3@api.example.com"], "more than 8192 bytes"),
    ):
        with pytest.raises((InvalidInput, NotFound), match=words):
            Sandbox.create(embedded=True, secrets=asked)
    argv = ["run", "--embedded", "--secret", "MY_KEY@api.example.com", "--", "sh", "-c"]
    assert main([*argv, "echo $MY_KEY"]) == 0
    out = capfdbinary.readouterr().out
    assert out.startswith(b"sk-ant-api03-") and VALUE.encode() not in out


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (
            "PATH@api.example.com",
            "that programs have from the sandbox (use another one, as MY_PATH)",
        ),
        ("T=command:kill -15 $$@api.example.com", "secret T: its command was ended by signal 15 ("),
        ("T=command:exit 3@api.example.com", "secret T: its command ended with exit code 3 ("),
    ],
)
def test_a_secret_that_cannot_be_used_is_told_by_the_command_line(secret: str, said: str) -> None:
    argv = [sys.executable, "-m", "agentd", "run", "--embedded", "--secret", secret, "--", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2 and said in done.stderr
