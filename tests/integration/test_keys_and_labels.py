"""Keys that tell whose they are, labels that change, and walls that cannot do what is asked."""

import contextlib
import sqlite3

from tests.security.daemons import Daemon, fixture, running

from agentd.auth.keys import MAX_KEYS_OF_ONE

daemon = fixture()


def test_a_key_tells_whose_it_is_and_who_made_it(daemon: Daemon) -> None:
    first = daemon.key("carol", "keys", "read", "create")
    made = daemon.ask("POST", "/v1/keys", {"name": "second", "scopes": ["read"]}, key=first).json
    id_ = made["id"]
    for key in (first, ""):
        view = daemon.ask("GET", f"/v1/keys/{id_}", key=key).json
        assert (view["principal"], view["created_by"]) == ("carol", "carol")
        assert view["parent"] and view["secret"] is None and view["last_used"] is None
    assert daemon.ask("GET", "/v1/sandboxes", key=made["secret"]).status == 200
    assert daemon.ask("GET", f"/v1/keys/{id_}").json["last_used"] is not None
    stranger = daemon.key("dave", "keys")
    for method in ("GET", "DELETE"):
        for id_of in (id_, "unknown"):
            assert daemon.ask(method, f"/v1/keys/{id_of}", key=stranger).status == 404
    assert daemon.ask("DELETE", f"/v1/keys/{id_}", key=first).status == 204
    assert daemon.ask("GET", f"/v1/keys/{id_}", key=first).json["revoked"]


def test_a_second_key_of_a_principal_is_an_admins_to_make(daemon: Daemon) -> None:
    daemon.key("erin", "keys", "create", "read")
    body = {"name": "erin-2", "scopes": ["create", "read"], "principal": "erin"}
    second = daemon.ask("POST", "/v1/keys", body).json
    assert second["principal"] == "erin" and second["name"] == "erin-2"
    box = daemon.sandbox(key=second["secret"])
    mine = daemon.ask(
        "GET", f"/v1/sandboxes/{box}", key=daemon.key("erin", "keys", "create", "read")
    )
    assert mine.json["principal"] == "erin"
    other = {"name": "x", "scopes": ["keys"], "principal": "carol"}
    assert daemon.ask("POST", "/v1/keys", other, key=daemon.key("dave", "keys")).status == 403
    made = daemon.cli("key", "create", "--name", "e3", "--principal", "erin", "--scopes", "read")
    assert made.returncode == 0 and b"erin" in made.stdout
    assert b"ACTS AS" in daemon.cli("key", "ls").stdout


def test_keys_that_have_ended_lock_nobody_out(daemon: Daemon) -> None:
    frank = daemon.key("frank", "keys", "read")
    for _ in range(MAX_KEYS_OF_ONE + 2):
        made = daemon.ask("POST", "/v1/keys", {"name": "k", "scopes": ["read"]}, key=frank)
        assert made.status == 201, made.body
        assert daemon.ask("DELETE", f"/v1/keys/{made.json['id']}", key=frank).status == 204
    views = daemon.ask("GET", "/v1/keys", key=frank).json
    assert len(views) == MAX_KEYS_OF_ONE and not views[0]["revoked"]
    for _ in range(MAX_KEYS_OF_ONE - 1):
        made = daemon.ask("POST", "/v1/keys", {"name": "k", "scopes": ["read"]}, key=frank)
        assert made.status == 201, made.body
    refused = daemon.ask("POST", "/v1/keys", {"name": "k", "scopes": ["read"]}, key=frank)
    assert (refused.status, refused.code) == (429, "quota_exceeded"), refused.body


def test_labels_change(daemon: Daemon) -> None:
    box = daemon.sandbox(labels={"a": "1", "b": "2"})
    path = f"/v1/sandboxes/{box}"
    changed = daemon.ask("PATCH", path, {"labels": {"a": None, "b": "3", "c": "4"}})
    assert changed.status == 200 and changed.json["labels"] == {"b": "3", "c": "4"}
    assert [s["id"] for s in daemon.ask("GET", "/v1/sandboxes?label=c=4").json["sandboxes"]] == [
        box
    ]
    assert daemon.ask("GET", "/v1/sandboxes?label=a=1").json["sandboxes"] == []
    assert daemon.ask("PATCH", path, {"labels": {"": "x"}}).status == 400
    assert daemon.ask("PATCH", path, {"labels": {"d": "x\0"}}).status == 400
    assert daemon.ask("PATCH", path, {"labels": {}}, key=daemon.key("dave", "read")).status == 403
    assert daemon.ask("PATCH", path, {"labels": {}}, key=daemon.key("dave")).status == 404


def test_a_sandbox_keeps_so_many_labels_of_such_a_length(daemon: Daemon) -> None:
    most = {f"k{n}": "v" for n in range(31)} | {"k" * 256: "v" * 256}
    path = f"/v1/sandboxes/{daemon.sandbox(labels=most)}"
    for wanted in ({**most, "more": "v"}, {"k" * 257: "v"}, {"k": "v" * 257}):
        refused = daemon.ask("POST", "/v1/sandboxes", {"labels": wanted})
        assert (refused.status, refused.code) == (400, "invalid_input"), refused.body
    for changed in ({"more": "v"}, {"k0": None, "k" * 257: "v"}, {"k0": "v" * 257}):
        refused = daemon.ask("PATCH", path, {"labels": changed})
        assert (refused.status, refused.code) == (400, "invalid_input"), refused.body
    assert daemon.ask("GET", path).json["labels"] == most
    assert daemon.ask("PATCH", path, {"labels": {"k0": None, "more": "v"}}).status == 200


def test_a_tag_is_a_short_line(daemon: Daemon) -> None:
    path = f"/v1/sandboxes/{daemon.sandbox()}/exec"
    for wrong in ("t" * 257, "a\nb", "a\x1b[2J"):
        refused = daemon.ask("POST", path, {"cmd": "true", "tag": wrong})
        assert (refused.status, refused.code) == (400, "invalid_input"), refused.body
    assert daemon.ask("POST", path, {"cmd": "true", "tag": "t" * 256}).status == 200


def test_a_label_that_no_filter_could_name_is_refused(daemon: Daemon) -> None:
    box = f"/v1/sandboxes/{daemon.sandbox()}"
    wrong = {"labels": {"a=b": "c"}}
    for method, path in (("POST", "/v1/sandboxes"), ("PUT", "/v1/sandboxes/n"), ("PATCH", box)):
        refused = daemon.ask(method, path, wrong)
        assert (refused.status, refused.code) == (400, "invalid_input"), (method, refused.body)
        assert "without '='" in refused.json["remediation"]
    assert daemon.ask("PATCH", box, {"labels": {"a": "b=c"}}).status == 200
    listed = daemon.ask("GET", "/v1/sandboxes?label=a=b%3Dc").json["sandboxes"]
    assert [f"/v1/sandboxes/{s['id']}" for s in listed] == [box]


def test_changed_labels_are_there_after_a_restart() -> None:
    with running() as daemon:
        path = f"/v1/sandboxes/{daemon.sandbox(labels={'a': '1'})}"
        daemon.ask("PATCH", path, {"labels": {"a": "2"}})
        daemon.stop(kill=True)
        daemon.start()
        assert daemon.ask("GET", path).json["labels"] == {"a": "2"}


def test_a_label_that_an_older_daemon_took_keeps_no_other_from_being_changed() -> None:
    with running() as daemon:
        path = f"/v1/sandboxes/{daemon.sandbox(labels={'a': '1'})}"
        daemon.stop(kill=True)
        with contextlib.closing(sqlite3.connect(daemon.state / "store.db")) as store, store:
            store.execute("UPDATE sandboxes SET labels = ?", ('{"a=b": "1"}',))
        daemon.start()
        changed = daemon.ask("PATCH", path, {"labels": {"c": "2"}})
        assert changed.status == 200, changed.body
        assert changed.json["labels"] == {"a=b": "1", "c": "2"}
        assert daemon.ask("PATCH", path, {"labels": {"a=b": "3"}}).status == 400
        changed = daemon.ask("PATCH", path, {"labels": {"a=b": None}})
        assert changed.json["labels"] == {"c": "2"}


def test_changed_labels_are_judged_as_a_new_sandbox_with_them() -> None:
    rules = """
default decision := {"allow": true, "reasons": ["yes"]}
decision := {"allow": false, "reasons": ["no"]} if input.sandbox.labels.team == "secret"
"""
    with running(policy=rules) as daemon:
        assert daemon.ask("POST", "/v1/sandboxes", {"labels": {"team": "secret"}}).status == 403
        path = f"/v1/sandboxes/{daemon.sandbox(labels={'team': 'open'})}"
        refused = daemon.ask("PATCH", path, {"labels": {"team": "secret"}})
        assert refused.code == "policy_denied"
        assert daemon.ask("GET", path).json["labels"] == {"team": "open"}
        assert daemon.ask("PATCH", path, {"labels": {"x": "y"}}).status == 200


def test_sandboxes_are_listed_by_their_state(daemon: Daemon) -> None:
    box = daemon.sandbox(labels={"of": "state"})
    for state, found in (("ready", [box]), ("paused", [])):
        listed = daemon.ask("GET", f"/v1/sandboxes?label=of=state&state={state}").json
        assert [s["id"] for s in listed["sandboxes"]] == found
        listed = daemon.cli("ls", "-q", "--label", "of=state", "--state", state).stdout
        assert listed.decode().split() == found
    for none in ("asleep", ""):  # "" is a variable that is not set, and not every state
        assert daemon.ask("GET", f"/v1/sandboxes?state={none}").code == "invalid_input"


def test_what_the_wall_cannot_do_is_told_as_that() -> None:
    with running("[sandbox]\nminimum = 'process'\n") as made:
        box = made.sandbox(backend="landlock")
        for what, body in (("snapshot", None), ("fork", {})):
            answer = made.ask("POST", f"/v1/sandboxes/{box}/{what}", body)
            assert (answer.status, answer.code) == (501, "unsupported"), what


def test_a_port_on_which_nothing_listens_is_no_fault_of_ours(daemon: Daemon) -> None:
    answer = daemon.ask("GET", f"/v1/sandboxes/{daemon.sandbox()}/ports/9/")
    assert (answer.status, answer.code) == (409, "operation_failed")


def test_a_move_to_another_filesystem_is_told_with_both_paths(daemon: Daemon) -> None:
    path = f"/v1/sandboxes/{daemon.sandbox()}/files"
    daemon.ask("POST", f"{path}/mkdir", {"path": "/workspace/d"})
    moved = {"path": "/workspace/d", "to": "/dev/shm/d"}
    answer = daemon.ask("POST", f"{path}/move", moved)
    assert (answer.status, answer.code) == (400, "operation_failed"), answer.body
    assert answer.json["message"].startswith("/workspace/d -> /dev/shm/d: ")
    assert "mv" in answer.json["remediation"]
    nowhere = {"path": "/workspace/d", "to": "/workspace/none/d"}
    answer = daemon.ask("POST", f"{path}/move", nowhere)
    assert answer.status == 404 and nowhere["to"] in answer.json["message"]
