"""Detached commands: they outlive their connection, and can be attached to again and again."""

import errno
import signal
from typing import Any

from agentd.guest import wire
from agentd.guest.history import MAX_RUNNING
from agentd.guest.output import RING_BYTES


def tried(client: Any, *argv: str, **fields: object) -> Any:
    """How it began, or did not."""
    channel = client.request("exec", argv=list(argv), detach=True, **fields)
    return client.wait(channel, "started", "failed")


def detach(client: Any, *argv: str, **fields: object) -> int:
    started = tried(client, *argv, **fields)
    assert started["event"] == "started", started
    return int(started["pid"])


def test_output_and_end_are_kept_for_a_late_attach(remote: Any) -> None:
    first = remote.connect()
    pid = detach(first, "sh", "-c", "echo one; echo two >&2; exit 5", tag="job")
    first.close()
    client = remote.connect()
    channel = client.request("attach", pid=pid)
    assert client.wait(channel)["code"] == 5
    again = client.request("attach", tag="job", cursor={"stdout": 2})
    ended = client.wait(again)
    assert (ended["event"], ended["code"], ended["cause"]) == ("exited", 5, "exited")
    assert client.events[again][0]["cursor"] == {"stdout": 2, "stderr": 0}
    assert (client.stdout(channel), client.stderr(channel)) == (b"one\n", b"two\n")
    assert (client.stdout(again), client.stderr(again)) == (b"e\n", b"two\n")


def test_a_live_attach_feeds_and_follows(remote: Any) -> None:
    client = remote.connect()
    pid = detach(client, "cat", stdin="stream")
    channels = [client.request("attach", pid=pid) for _ in range(2)]
    for channel in channels:
        client.wait(channel, "attached")
    client.send(wire.STDIN, channels[0], b"hello")
    for channel in channels:
        client.until(lambda channel=channel: client.stdout(channel) == b"hello")
    client.send(wire.STDIN_EOF, channels[1])
    for channel in channels:
        assert client.wait(channel)["code"] == 0


def test_a_slow_attacher_holds_up_nobody(remote: Any) -> None:
    client = remote.connect()
    pid = detach(client, "head", "-c", "500000", "/dev/zero")
    slow, fast = (client.request("attach", pid=pid) for _ in range(2))
    client.silent.add(slow)
    assert client.wait(fast)["code"] == 0
    assert len(client.stdout(fast)) == 500_000
    assert len(client.stdout(slow)) <= wire.INITIAL_WINDOW
    client.grant(slow, 1 << 20)
    assert client.wait(slow)["code"] == 0
    assert len(client.stdout(slow)) == 500_000


def test_one_that_holds_misses_nothing_and_the_command_waits_for_it(remote: Any) -> None:
    client = remote.connect()
    total = 4 * RING_BYTES
    pid = detach(client, "head", "-c", str(total), "/dev/zero", hold=True)
    channel = client.request("attach", pid=pid, hold=True)
    client.silent.add(channel)
    client.until(lambda: len(client.stdout(channel)) == wire.INITIAL_WINDOW)
    client.silent.discard(channel)
    client.grant(channel, wire.INITIAL_WINDOW)
    assert client.wait(channel)["code"] == 0
    assert len(client.stdout(channel)) == total
    assert not [e for e in client.events[channel] if e["event"] == "dropped"]


def test_when_the_one_that_holds_leaves_the_command_goes_on(remote: Any) -> None:
    holder, other = remote.connect(), remote.connect()
    total = 4 * RING_BYTES
    pid = detach(holder, "head", "-c", str(total), "/dev/zero", hold=True)
    channel = holder.request("attach", pid=pid, hold=True)
    holder.silent.add(channel)
    holder.until(lambda: len(holder.stdout(channel)) == wire.INITIAL_WINDOW)
    holder.close()
    late = other.request("attach", pid=pid)
    assert other.wait(late)["code"] == 0


def test_the_ring_keeps_the_last_bytes(remote: Any) -> None:
    client = remote.connect()
    size = RING_BYTES + 12_345
    pid = detach(client, "sh", "-c", f"head -c {size} /dev/zero; printf end")
    client.wait(client.request("attach", pid=pid, cursor={"stdout": size + 3}))
    channel = client.request("attach", pid=pid)
    client.wait(channel)
    assert client.events[channel][0]["cursor"]["stdout"] == 12_345 + 3
    assert len(client.stdout(channel)) == RING_BYTES
    assert client.stdout(channel).endswith(b"\0end")
    listed = client.wait(client.request("list"))["processes"]
    assert [(entry["pid"], entry["state"], entry["stdout_bytes"]) for entry in listed] == [
        (pid, "exited", size + 3)
    ]


def test_it_survives_the_connection_and_can_be_signalled(remote: Any) -> None:
    first = remote.connect()
    pid = detach(first, "sleep", "600", tag="long")
    first.close()
    client = remote.connect()
    channel = client.request("attach", tag="long")
    client.wait(channel, "attached")
    taken = client.wait(client.request("exec", argv=["true"], tag="long", detach=True))
    assert (taken["event"], taken["errno"]) == ("failed", errno.EEXIST)
    client.control(channel, op="signal", signal=int(signal.SIGTERM))
    ended = client.wait(channel)
    assert (ended["signal"], ended["cause"]) == (signal.SIGTERM, "signalled")
    assert client.events[channel][0]["pid"] == pid


def test_detaching_again_leaves_it_alone(remote: Any) -> None:
    other = remote.connect()
    pid = detach(other, "sleep", "600")
    follower = remote.connect()
    follower.wait(follower.request("attach", pid=pid), "attached")
    follower.close()
    listed = other.wait(other.request("list"))["processes"]
    assert [(entry["pid"], entry["state"]) for entry in listed] == [(pid, "running")]


def test_what_cannot_be_attached_to(remote: Any) -> None:
    client = remote.connect()
    assert client.wait(client.request("attach", pid=1))["errno"] == errno.ESRCH
    client.request("exec", argv=["sleep", "600"], tag="attached")
    refused = client.wait(client.request("attach", tag="attached"))
    assert "not detached" in refused["message"]


def test_so_many_run_at_once_and_no_two_by_one_tag(remote: Any) -> None:
    client = remote.connect()
    for number in range(MAX_RUNNING):
        detach(client, "sleep", "600", tag=f"t{number}")
    for fields in ({}, {"tag": "another"}):
        refused = tried(client, "sleep", "600", **fields)
        assert (refused["event"], refused["errno"]) == ("failed", errno.EAGAIN)
    followed = client.request("attach", tag="t0")
    client.wait(client.request("signal", tag="t0", signal=signal.SIGKILL))
    client.wait(followed)
    taken = tried(client, "sleep", "600", tag="t1")
    assert (taken["event"], taken["errno"]) == ("failed", errno.EEXIST)
    detach(client, "sleep", "600", tag="t0")


def test_a_tag_is_bounded(remote: Any) -> None:
    client = remote.connect()
    refused = tried(client, "sleep", "600", tag="t" * 257)
    assert (refused["event"], "tag" in refused["message"]) == ("failed", True)
    detach(client, "sleep", "600", tag="t" * 256)
