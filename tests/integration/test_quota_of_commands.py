"""How many commands of one principal run at the same time, over a restart of the daemon."""

from tests.security.daemons import running, until

from agentd.daemon.admission.denials import BURST

ONE = "[quotas.principals.alice]\nconcurrency = 1\n"


def test_a_command_that_goes_on_after_a_restart_counts_until_it_ends() -> None:
    with running(ONE) as daemon:
        alice = daemon.key("alice")
        path = f"/v1/sandboxes/{daemon.sandbox(alice)}"
        waits = {"cmd": "until [ -e go ]; do sleep 0.1; done", "wait": False}
        first = daemon.ask("POST", f"{path}/exec", waits, key=alice).json["id"]
        assert daemon.ask("POST", f"{path}/exec", {"cmd": "true"}, key=alice).status == 429
        daemon.stop(kill=True)
        daemon.start()
        refused = daemon.ask("POST", f"{path}/exec", {"cmd": "true"}, key=alice)
        assert (refused.status, refused.code) == (429, "quota_exceeded"), refused.body
        daemon.ask("PUT", f"{path}/files?path=/workspace/go", b"", key=alice)
        process = f"{path}/processes/{first}"
        until(lambda: daemon.ask("GET", process, key=alice).json["state"] == "ended")
        until(lambda: daemon.ask("POST", f"{path}/exec", {"cmd": "true"}, key=alice).status == 200)


def test_what_a_quota_has_no_room_for_is_one_denial_by_each_way() -> None:
    with running("[quotas.principals.alice]\nsandboxes = 1\nconcurrency = 1\n") as daemon:
        alice = daemon.key("alice")
        box = daemon.sandbox(alice)
        path = f"/v1/sandboxes/{box}"
        refused = {
            "create": daemon.ask("POST", "/v1/sandboxes", {}, key=alice),
            "call": daemon.call("shell.exec.v1", {"command": "true"}, key=alice),
        }
        waits = {"cmd": "sleep 600", "wait": False}
        assert daemon.ask("POST", f"{path}/exec", waits, key=alice).status < 300
        refused["exec"] = daemon.ask("POST", f"{path}/exec", {"cmd": "true"}, key=alice)
        for answer in refused.values():
            assert (answer.status, answer.code) == (429, "quota_exceeded"), answer.body
        requests = {way: answer.headers["x-request-id"] for way, answer in refused.items()}
        daemon.until_recorded(kind="denial", request=requests["exec"])
        for way, request in requests.items():
            (denial,) = daemon.records(kind="denial", request=request)
            assert denial.fields["code"] == "quota_exceeded", way
            assert denial.sandbox == (box if way == "exec" else ""), way


def test_what_a_quota_refuses_hides_no_other_denial() -> None:
    with running("[quotas.principals.alice]\nsandboxes = 0\n") as daemon:
        alice, many = daemon.key("alice"), 2 * int(BURST)
        for _ in range(many):
            assert daemon.ask("POST", "/v1/sandboxes", {}, key=alice).status == 429
        forbidden = daemon.ask("GET", "/v1/audit/head", key=alice)
        assert (forbidden.status, forbidden.code) == (403, "forbidden")
        assert daemon.ask("POST", "/v1/sandboxes", {}, key=alice).status == 429
        daemon.stop()
        denials = daemon.records(kind="denial", principal="alice")
    assert forbidden.headers["x-request-id"] in {each.request for each in denials}
    assert sum(each.fields.get("repeated", 1) for each in denials) == many + 2
