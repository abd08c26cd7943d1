"""Connections that idled: which are used again, and what happens on one that died unnoticed."""

import itertools
import json

import pytest

from agentd.guest import wire
from agentd.model.errors import BackendLost
from agentd.model.spec import ExecRequest

TRUE = ExecRequest(("true",))


def hello(instance):
    boot = {"pid1": True, "uptime_ms": 1, "instance": instance}
    return json.dumps({"agentd": 2, "agent": "0", "features": [], "boot": boot}).encode() + b"\n"


def run_one(peer, code=0, seen=None):
    channel, request = peer.request()
    if seen is not None:
        seen.append(request)
    peer.event(channel, "started", pid=7)
    peer.exited(channel, code)


def dies_unnoticed(instances, *, say=None):
    """The first connection serves one command, reads the next, and ends; the second serves."""
    numbers = itertools.count()
    seen = []

    def script(peer):
        number = next(numbers)
        peer.greet(hello(instances[number]))
        if number == 0:
            run_one(peer)
            channel, request = peer.request()
            seen.append(request)
            if say is not None:
                peer.event(channel, say, pid=7)
            return
        while True:
            run_one(peer, 4, seen)

    return script, seen


@pytest.mark.parametrize("instances", [("one", "one"), ("", "")])
def test_a_command_that_nothing_was_heard_of_is_sent_again(agent, instances):
    script, seen = dies_unnoticed(instances)
    guest = agent(script, greeted=False)
    guest.run(TRUE)
    assert guest.run(ExecRequest(("echo", "again")))[0].exit_code == 4
    assert seen == [{"op": "exec", "argv": ["echo", "again"]}] * 2
    assert guest.run(TRUE)[0].exit_code == 4
    assert guest.fake.connections == 2


def test_its_stdin_goes_along(agent):
    got = bytearray()
    numbers = itertools.count()

    def script(peer):
        if next(numbers) == 0:
            run_one(peer)
            peer.request()
            return
        channel, _ = peer.request()
        peer.event(channel, "started", pid=7)
        while (frame := peer.frame())[0] != wire.STDIN_EOF:
            got.extend(frame[2])
        peer.exited(channel)

    guest = agent(script)
    guest.run(TRUE)
    guest.run(ExecRequest(("cat",)), stdin=b"x" * 20_000)
    assert got == b"x" * 20_000


def test_a_command_that_has_begun_is_not_sent_again(agent):
    script, seen = dies_unnoticed(("one", "one"), say="started")
    guest = agent(script, greeted=False)
    guest.run(TRUE)
    with pytest.raises(BackendLost):
        guest.run(TRUE)
    assert len(seen) == guest.fake.connections == 1


def test_another_agent_is_not_asked_what_the_one_before_may_have_begun(agent):
    script, seen = dies_unnoticed(("one", "two"))
    guest = agent(script, greeted=False)
    guest.run(TRUE)
    with pytest.raises(BackendLost):
        guest.run(TRUE)
    assert len(seen) == 1


def test_what_is_lost_again_is_lost(agent):
    def script(peer):
        peer.greet(hello("one"))
        if guest.fake.connections == 1:
            run_one(peer)
        peer.request()

    guest = agent(script, greeted=False)
    guest.run(TRUE)
    with pytest.raises(BackendLost):
        guest.run(TRUE)
    assert guest.fake.connections == 2


def test_a_request_that_is_no_command_is_sent_again_too(agent):
    numbers = itertools.count()

    def script(peer):
        first = next(numbers) == 0
        while True:
            channel, request = peer.request()
            if first and request["op"] == "sys.info":
                return
            peer.event(channel, "result", value=1)

    guest = agent(script)
    guest.call("sys.ping")
    assert guest.call("sys.info") == {"value": 1}


def test_once_renewed_no_connection_of_before_is_used_again(agent):
    def script(peer):
        while True:
            run_one(peer)

    guest = agent(script)
    with guest.start(TRUE) as running:
        guest.run(TRUE)
        guest.renew()
        running.wait()  # it was in use, and is given back only now
    guest.run(TRUE)
    assert guest.fake.connections == 3
