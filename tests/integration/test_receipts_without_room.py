"""A receipt that could not be kept when it was issued: it is given all the same, and kept once
there is room."""

import os
import shutil
import time

from tests.security.daemons import Answer, Daemon, running, until


def ran(daemon: Daemon, box: str) -> str:
    answer = daemon.ask("POST", f"/v1/sandboxes/{box}/exec", {"cmd": "true"})
    assert answer.status == 200, answer.body
    receipt: str = answer.json["receipt"]
    return receipt


def test_it_is_there_for_who_asks_then_and_later() -> None:
    def asked(receipt: str) -> Answer:
        return daemon.ask("GET", f"/v1/receipts/{receipt}")

    with running() as daemon:
        place = daemon.state / "receipts"
        box = daemon.sandbox()
        before = ran(daemon, box)
        # Kept, and not only given: else it would be now, and make the folder anew.
        until(lambda: any(before.encode() in file.read_bytes() for file in place.glob("*.jsonl")))
        shutil.rmtree(place)
        place.write_bytes(b"")  # as if there were no room
        missed = ran(daemon, box)
        given = asked(missed)
        time.sleep(0.5)  # in which it is tried
        os.unlink(place)
        later = asked(ran(daemon, box))
        assert (given.status, later.status, asked(missed).status) == (200, 200, 200)
        assert asked(missed).body == given.body
        until(lambda: any(missed.encode() in file.read_bytes() for file in place.glob("*.jsonl")))
