"""Ended output within ``journal.total``: nobody's takes the place of another's, and what runs
takes none."""

from tests.security.daemons import Daemon, fixture, until

daemon = fixture('[journal]\ntotal = "1M"\nprocess = "1M"\nmemory = "4k"\n')
_KIB = 1024


def start(daemon: Daemon, key: str, sandbox: str, script: str) -> str:
    body = {"cmd": ["sh", "-c", script], "wait": False}
    started: str = daemon.ask("POST", f"/v1/sandboxes/{sandbox}/exec", body, key=key).json["id"]
    return f"/v1/sandboxes/{sandbox}/processes/{started}"


def write(daemon: Daemon, key: str, sandbox: str, kib: int) -> str:
    """Where a command is that wrote so much and ended."""
    process = start(daemon, key, sandbox, f"head -c {kib * _KIB} /dev/urandom")
    until(lambda: daemon.ask("GET", process, key=key).json["state"] == "ended")
    return process


def kept(daemon: Daemon, key: str, process: str) -> int:
    return len(daemon.ask("GET", f"{process}/output?stream=stdout", key=key).body)


def on_disk(daemon: Daemon) -> int:
    paths = (daemon.state / "journals").rglob("*")
    return sum(path.stat().st_size for path in paths if path.is_file())


def test_who_writes_much_loses_its_own_output_alone(daemon: Daemon) -> None:
    alice, bob = daemon.key("alice"), daemon.key("bob")
    mine = write(daemon, alice, daemon.sandbox(alice), 300)
    box = daemon.sandbox(bob)
    theirs = [write(daemon, bob, box, 400) for _ in range(6)]
    until(lambda: on_disk(daemon) < 1200 * _KIB)  # it is trimmed a moment later
    assert kept(daemon, alice, mine) == 300 * _KIB
    assert kept(daemon, bob, theirs[0]) == 0
    assert kept(daemon, bob, theirs[-1]) == 400 * _KIB
    for name in ("alice", "bob"):
        for one in daemon.ask("GET", "/v1/sandboxes", key=daemon.key(name)).json["sandboxes"]:
            daemon.ask("DELETE", f"/v1/sandboxes/{one['id']}")


def test_what_runs_takes_the_place_of_nothing_that_ended(daemon: Daemon) -> None:
    key = daemon.key("carol")
    box = daemon.sandbox(key)
    first = write(daemon, key, box, 200)
    running = start(daemon, key, box, f"head -c {900 * _KIB} /dev/urandom; sleep 1000")
    until(lambda: kept(daemon, key, running) == 900 * _KIB)
    last = write(daemon, key, box, 100)  # of that many bytes it is looked whether to trim
    assert kept(daemon, key, last) == 100 * _KIB
    assert kept(daemon, key, first) == 200 * _KIB
    assert kept(daemon, key, running) == 900 * _KIB
