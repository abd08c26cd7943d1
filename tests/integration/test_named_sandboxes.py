"""A sandbox that its principal has given a name is found by that, wherever an id is asked for."""

import pytest
from tests.security.daemons import Daemon, Later, fixture, running, until

import agentd

daemon = fixture()


def test_it_goes_by_its_name_wherever_an_id_does(daemon: Daemon) -> None:
    box = daemon.sandbox(name="build")
    try:
        view = daemon.ask("GET", "/v1/sandboxes/build").json
        assert (view["id"], view["name"]) == (box, "build")
        listed = daemon.ask("GET", "/v1/sandboxes").json["sandboxes"]
        assert [v["name"] for v in listed if v["id"] == box] == ["build"]
        ran = daemon.ask("POST", "/v1/sandboxes/build/exec", {"cmd": ["echo", "hello"]})
        assert ran.json["stdout"] == "hello\n"
        put = daemon.ask("PUT", "/v1/sandboxes/build/files?path=/workspace/a", b"text")
        assert put.status == 200
        called = daemon.call("fs.read.v1", {"path": "/workspace/a"}, sandbox="build")
        assert called.json["value"]["content"] == "text"
        assert called.json["sandbox"]["id"] == box
        exec_ = daemon.cli("exec", "build", "--", "cat", "/workspace/a")
        assert exec_.stdout == b"text", exec_.stderr
        assert daemon.records(sandbox="build") == []
    finally:
        assert daemon.ask("DELETE", "/v1/sandboxes/build").status == 204
    assert daemon.ask("GET", "/v1/sandboxes/build").status == 404
    for op in (b"get", b"exec", b"write_file", b"delete"):  # the last is told behind its answer
        until(lambda op=op: _is_logged(daemon, op, box))  # type: ignore[misc]


def _is_logged(daemon: Daemon, op: bytes, box: str) -> bool:
    told = [line for line in daemon.log.splitlines() if b" op=%b " % op in line]
    return any(b"sandbox=%b " % box.encode() in line for line in told)


def test_a_refusal_by_scope_has_the_id_of_what_was_asked_for_by_its_name(daemon: Daemon) -> None:
    box = daemon.sandbox(key=daemon.key("cat"), name="mine")
    reader = daemon.key("cat", "read")
    path = "/v1/sandboxes/mine"
    call = {"capability": "shell.exec.v1", "parameters": {"command": "true"}, "sandbox": "mine"}
    for method, at, body in (
        ("POST", f"{path}/exec", {"cmd": "true"}),
        ("POST", f"{path}/renew", {"ttl": "9m"}),
        ("POST", f"{path}/files/mkdir", {"path": "/workspace/d"}),
        ("DELETE", path, None),
        ("POST", "/v1/call", call),
    ):
        refused = daemon.ask(method, at, body, key=reader)
        assert refused.status == 403, at
        denial = daemon.until_recorded(kind="denial", request=refused.headers["x-request-id"])
        assert denial.sandbox == box, at
    assert daemon.ask("DELETE", path, key=daemon.key("cat")).status == 204


def test_a_repeat_finds_by_the_name_what_it_was_asked_of(daemon: Daemon) -> None:
    """While it lives, once it has ended, and when it is another that has the name."""
    ann = daemon.key("ann")
    asked = [
        ("POST", "/v1/sandboxes/again/exec", {"cmd": ["sh", "-c", "echo a >>/workspace/n"]}),
        ("PUT", "/v1/sandboxes/again/files?path=/workspace/a", b"text"),
        (
            "POST",
            "/v1/call",
            {"capability": "shell.exec.v1", "parameters": {"command": "true"}, "sandbox": "again"},
        ),
    ]

    def answers() -> list[tuple[int, bytes]]:
        found = []
        for n, (method, path, body) in enumerate(asked):
            answer = daemon.ask(method, path, body, key=ann, Idempotency_Key=f"again{n}")
            found.append((answer.status, answer.body))
        return found

    box = daemon.sandbox(key=ann, name="again")
    first = answers()
    assert [status for status, _ in first] == [200] * 3, first
    assert answers() == first
    counted = daemon.ask("GET", "/v1/sandboxes/again/files?path=/workspace/n", key=ann)
    assert counted.body == b"a\n"
    daemon.ask("DELETE", f"/v1/sandboxes/{box}", key=ann)
    assert answers() == first
    daemon.sandbox(key=ann, name="again")
    assert answers() == first
    assert daemon.ask("DELETE", "/v1/sandboxes/again", key=ann).status == 204
    other = daemon.ask(*asked[0], key=daemon.key("bob"), Idempotency_Key="again0")
    assert other.status == 404


def test_a_name_is_taken_while_its_sandbox_lives(daemon: Daemon) -> None:
    first = daemon.sandbox(name="one")
    again = daemon.ask("POST", "/v1/sandboxes", {"name": "one"})
    assert (again.status, again.code) == (409, "conflict")
    assert "one" in again.json["message"]
    daemon.ask("DELETE", f"/v1/sandboxes/{first}")
    second = daemon.sandbox(name="one")
    assert second != first
    daemon.ask("DELETE", f"/v1/sandboxes/{second}")


def test_a_name_that_failed_is_free(daemon: Daemon) -> None:
    refused = daemon.ask("POST", "/v1/sandboxes", {"name": "free", "backend": "nosuch"})
    assert refused.status in (400, 404, 422, 502, 503), refused.body
    daemon.ask("DELETE", f"/v1/sandboxes/{daemon.sandbox(name='free')}")


def test_each_principal_has_names_of_its_own(daemon: Daemon) -> None:
    ann, bob = daemon.key("ann"), daemon.key("bob")
    hers = daemon.sandbox(key=ann, name="mine")
    assert daemon.ask("GET", "/v1/sandboxes/mine", key=bob).status == 404
    assert daemon.ask("DELETE", "/v1/sandboxes/mine", key=bob).status == 404
    assert daemon.ask("GET", "/v1/sandboxes/mine").status == 404, "an admin's is another"
    his = daemon.sandbox(key=bob, name="mine")
    assert daemon.ask("GET", "/v1/sandboxes/mine", key=ann).json["id"] == hers
    assert daemon.ask("GET", "/v1/sandboxes/mine", key=bob).json["id"] == his
    for id_ in (hers, his):
        daemon.ask("DELETE", f"/v1/sandboxes/{id_}")


@pytest.mark.parametrize(
    "name", ["", " ", "sbx-abcdefghijkl", "-a", ".a", "a/b", "a b", "ä", "a" * 64, "a\n", "a%2f"]
)
def test_what_is_no_name_is_refused(daemon: Daemon, name: str) -> None:
    refused = daemon.ask("POST", "/v1/sandboxes", {"name": name})
    assert (refused.status, refused.code) == (400, "invalid_input"), refused.body
    assert "is no name of a sandbox" in refused.json["message"]


def test_one_of_a_call_has_none(daemon: Daemon) -> None:
    refused = daemon.call("shell.exec.v1", {"command": "true"}, create={"name": "x"})
    assert refused.status == 400 and "has no 'name'" in refused.json["message"]


def test_of_many_that_ask_at_once_one_is_made(daemon: Daemon) -> None:
    asked = [Later(lambda: daemon.ask("POST", "/v1/sandboxes", {"name": "race"})) for _ in range(8)]
    statuses = sorted(each.answer().status for each in asked)
    assert statuses == [201] + [409] * 7
    daemon.ask("DELETE", "/v1/sandboxes/race")


def test_put_returns_the_one_that_is_there_or_makes_it(daemon: Daemon) -> None:
    asked = [
        Later(lambda: daemon.ask("PUT", "/v1/sandboxes/put", {"labels": {"a": "1"}}))
        for _ in range(8)
    ]
    answers = [each.answer() for each in asked]
    assert [each.status for each in answers] == [200] * 8
    (box,) = {each.json["id"] for each in answers}
    assert answers[0].json["name"] == "put" and answers[0].json["labels"] == {"a": "1"}
    as_it_is = daemon.ask("PUT", "/v1/sandboxes/put", {"labels": {"a": "2"}, "name": "put"})
    assert (as_it_is.json["id"], as_it_is.json["labels"]) == (box, {"a": "1"})
    other = daemon.ask("PUT", "/v1/sandboxes/put", {"name": "other"})
    assert other.status == 400 and "not that of the path" in other.json["message"]
    by_id = daemon.ask("PUT", f"/v1/sandboxes/{box}", {})
    assert by_id.status == 400 and "is no name" in by_id.json["message"]
    daemon.ask("DELETE", "/v1/sandboxes/put")
    new = daemon.ask("PUT", "/v1/sandboxes/put", {})
    assert new.status == 200 and new.json["id"] != box
    daemon.ask("DELETE", "/v1/sandboxes/put")


def test_the_client_gets_or_creates_one(daemon: Daemon) -> None:
    with agentd.Client(daemon.url) as client:
        made = client.sandboxes.get_or_create("kept")
        assert made.name == "kept"
        assert client.sandboxes.get_or_create("kept").id == made.id
        with agentd.Sandbox.connect("kept", url=daemon.url) as box:
            assert box.id == made.id
            assert box.run(["echo", "hi"]).stdout == b"hi\n"
        with agentd.Sandbox.get_or_create("kept", url=daemon.url, labels={"a": "b"}) as box:
            assert (box.id, box.name, dict(box.labels)) == (made.id, "kept", {})
        assert client.sandboxes.get("kept").id == made.id, "closed, it goes on"
        client.sandboxes.kill("kept")
    with agentd.Sandbox.create(name="x", wait="1s", url=daemon.url) as box:
        assert box.name == "x"
        with pytest.raises(agentd.Conflict, match="'x' already"):
            agentd.Sandbox.create(name="x", url=daemon.url)


def test_the_command_line_names_one_and_lists_its_name(daemon: Daemon) -> None:
    made = daemon.cli("create", "--name", "shell", "--wait", "1s")
    assert made.returncode == 0, made.stderr
    listed = daemon.cli("ls").stdout.splitlines()
    assert listed[0].split()[:3] == [b"ID", b"NAME", b"STATE"]
    assert [made.stdout.strip(), b"shell"] in [line.split()[:2] for line in listed]
    assert daemon.cli("kill", "shell").returncode == 0


@pytest.mark.parametrize("option", [{"name": "x"}, {"wait": 1}])
def test_one_of_this_process_takes_neither(option: dict[str, object]) -> None:
    with pytest.raises(agentd.InvalidInput, match="for the sandboxes of a daemon"):
        agentd.Sandbox.create(embedded=True, **option)  # type: ignore[arg-type]


def test_put_needs_the_scope_create(daemon: Daemon) -> None:
    refused = daemon.ask("PUT", "/v1/sandboxes/put", {}, key=daemon.key("eve", "read", "run"))
    assert (refused.status, refused.code) == (403, "forbidden")


def test_it_has_its_name_under_the_next_daemon() -> None:
    with running() as daemon:
        box = daemon.sandbox(name="stays")
        daemon.stop(kill=True)
        daemon.start()
        assert daemon.ask("GET", "/v1/sandboxes/stays").json["id"] == box
        assert daemon.ask("POST", "/v1/sandboxes", {"name": "stays"}).status == 409
        assert daemon.ask("DELETE", "/v1/sandboxes/stays").status == 204
