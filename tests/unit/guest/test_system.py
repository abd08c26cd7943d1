import base64
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from agentd.guest import system
from agentd.guest.loop import Loop


def context(**changes):
    base = {"pid1": False, "paths": ["/"], "on_shutdown": lambda: None}
    return system.SystemContext(**{**base, **changes})


def call(new_channel, op, ctx=None, **request):
    return new_channel().start(system.operations(ctx or context())[op], **request)


def test_ping_info_usage(new_channel):
    assert call(new_channel, "sys.ping").last["event"] == "result"
    info = call(new_channel, "sys.info").last
    assert info["hostname"] == os.uname().nodename
    assert info["pid1"] is False
    assert 0 < info["memory_available_bytes"] <= info["memory_total_bytes"]
    assert info["processes"] >= 1
    usage = call(new_channel, "sys.usage", paths=["/proc", "/"]).last
    assert [disk["path"] for disk in usage["disks"]] == ["/proc", "/"]
    assert usage["disks"][1]["total_bytes"] == (os.statvfs("/").f_blocks * os.statvfs("/").f_frsize)
    assert usage["cpu_ms"] > 0
    assert usage["memory_bytes"] > 1 << 20
    assert call(new_channel, "sys.usage", paths=["/no/such"]).last["errno"] == errno.ENOENT
    assert call(new_channel, "sys.usage", paths="/").last["event"] == "error"


def test_descriptors_that_came_along_are_closed(new_channel):
    read, write = os.pipe()
    channel = new_channel()
    system.operations(context())["sys.ping"](channel, {}, [write])
    assert os.read(read, 1) == b""
    os.close(read)


def test_clock_is_set_or_refused_in_words(new_channel, monkeypatch):
    calls = []
    monkeypatch.setattr(time, "clock_settime_ns", lambda *args: calls.append(args))
    last = call(new_channel, "sys.clock", unix_ns=time.time_ns() + 10**12).last
    assert calls[0][0] == time.CLOCK_REALTIME
    assert 0.9e12 < last["step_ns"] <= 1e12

    def refuse(*_):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(time, "clock_settime_ns", refuse)
    last = call(new_channel, "sys.clock", unix_ns=1).last
    assert (last["errno"], "CAP_SYS_TIME" in last["message"]) == (errno.EPERM, True)
    for bad in (-1, "1", 1 << 63):
        assert call(new_channel, "sys.clock", unix_ns=bad).last["event"] == "error"
    assert call(new_channel, "sys.clock").last["event"] == "error"


def test_reseed_writes_what_it_may_not_credit(new_channel, monkeypatch, tmp_path):
    pool = tmp_path / "pool"
    pool.touch()
    monkeypatch.setattr(system, "_RANDOM", str(pool))  # ENOTTY: no credit here
    text = base64.b64encode(b"e" * 4096).decode()
    last = call(new_channel, "sys.reseed", entropy=text).last
    assert last == {"event": "result", "credited": False}
    assert pool.read_bytes() == b"e" * 4096


def test_reseed_credits_through_the_kernels_interface(new_channel, monkeypatch):
    calls = []
    monkeypatch.setattr(system, "ioctl", lambda fd, *args: calls.append(args))
    last = call(new_channel, "sys.reseed", entropy="AAECAw==").last
    assert last["credited"] is True
    assert calls == [(0x40085203, b"\x20\0\0\0\4\0\0\0\0\1\2\3"), (0x5207,)]


@pytest.mark.parametrize("entropy", ["", "!!!!", "AAEC Aw", None, 5, "A" * 5600, "é"])
def test_bad_entropy(new_channel, entropy):
    last = call(new_channel, "sys.reseed", entropy=entropy).last
    assert "base64" in last["message"]


def test_freeze_and_thaw_only_in_a_namespace_of_our_own(new_channel):
    sent = []
    own = context(pid1=True, signal_all=sent.append)
    assert call(new_channel, "sys.freeze", own).last["event"] == "result"
    assert call(new_channel, "sys.thaw", own).last["event"] == "result"
    assert sent == [signal.SIGSTOP, signal.SIGCONT]
    shared = context(pid1=False, signal_all=sent.append)
    assert call(new_channel, "sys.freeze", shared).last["errno"] == errno.EPERM
    assert len(sent) == 2


def test_signalling_nobody_is_no_error():
    def nobody(pid, number):
        assert (pid, number) == (-1, signal.SIGSTOP)
        raise ProcessLookupError

    system.signal_namespace(signal.SIGSTOP, nobody)


FREEZE = """
import ctypes, os, signal, time
from agentd.guest import system
assert ctypes.CDLL(None, use_errno=True).unshare(0x20000000) == 0, ctypes.get_errno()
first = os.fork()
if first == 0:
    code = 1
    try:
        assert os.getpid() == 1  # never kill(-1) outside
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        system.signal_namespace(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
        system.signal_namespace(signal.SIGCONT)
        assert os.WIFCONTINUED(os.waitpid(child, os.WCONTINUED)[1])
        code = 0
    finally:
        os._exit(code)  # takes the namespace with it
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
"""


@pytest.mark.root
def test_a_namespace_stops_and_goes_on_but_for_the_caller():
    run = subprocess.run([sys.executable, "-c", FREEZE], check=False, capture_output=True)
    assert run.returncode == 0, run.stderr


def test_shutdown_answers_first(new_channel):
    channel = new_channel()
    told = []

    def down():
        told.append(channel.last)
        channel.loop.stop()

    channel.start(system.operations(context(on_shutdown=down))["sys.shutdown"])
    assert (channel.last, told) == ({"event": "result"}, [])
    channel.loop.run()
    assert told == [{"event": "result"}]


def test_the_agent_without_an_init_stops_its_loop():
    loop = Loop()
    loop.after(0, system.stop_agent(loop, pid1=False))
    loop.after(60, lambda: None)
    loop.run()
    loop.close()


def test_a_lease_ends_the_sandbox_unless_it_is_renewed(new_channel):
    ended = []
    loop = Loop()
    ctx = context(on_shutdown=lambda: (ended.append(time.monotonic()), loop.stop()))

    def lease(**request):
        channel = new_channel()
        channel.loop = loop
        return channel.start(system.operations(ctx)["sys.lease"], **request).last

    assert lease(ms=30)["event"] == "result"
    assert lease(ms=None)["event"] == "result"
    started = time.monotonic()
    loop.after(0.1, lambda: lease(ms=50))
    loop.run()
    loop.close()
    assert len(ended) == 1
    assert ended[0] - started >= 0.15
    for wrong in (0, -1, 1 << 60, "1", True):
        assert lease(ms=wrong)["event"] == "error"
