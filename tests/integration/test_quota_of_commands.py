"""How many commands of one principal run at the same time, over a restart of the daemon."""

from tests.security.daemons import running, until

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
