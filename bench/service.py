"""The daemon over its unix socket, through the SDK: what a request costs, and how many it takes."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cases import Contender, interleave, oci_exec, reason
from stats import Case, Row, Target, milliseconds

TRUE = "/bin/true"
GIB = 1 << 30
FOLLOWERS = 500
WORKERS = 8
CONFIG = """
[daemon]
state = "{state}"
[[listen]]
address = "unix:{socket}"
[[auth.peers]]
uid = "self"
scopes = ["admin"]
[[pool]]
min = 8
max = 24
[journal]
process = "256M"
[policy]
bundle = "{policy}"
"""
WALL = "7 namespaces, mounts, Landlock, seccomp, cgroups, rlimits, no capabilities"


class Daemon:
    """``agentd serve`` in a folder of its own, until ``close``."""

    def __init__(self, stack: ExitStack, policy: str = "permissive", more: str = "") -> None:
        """``more`` is TOML that comes behind what each of them has."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-")))
        self.socket, self.state = folder / "a.sock", folder / "state"
        config = folder / "agentd.toml"
        text = CONFIG.format(state=self.state, socket=self.socket, policy=policy)
        config.write_text(text + more)
        self.url = f"unix:{self.socket}"
        agentd = str(Path(sys.executable).with_name("agentd"))
        started = time.perf_counter()
        self._process = subprocess.Popen(
            [agentd, "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(self._close)
        self._await_ready()
        self.start_ms = (time.perf_counter() - started) * 1000
        self.agentd = agentd
        self.fresh = 0.0  # MB, before the first request

    def memory(self) -> float:
        """MB of private and shared memory, its share (PSS)."""
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(x.split()[1]) for x in rollup if x.startswith("Pss:")) * 1024 / 1e6

    def _await_ready(self) -> None:
        from agentd.client.http import address, client

        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(Exception):
                client.HttpClient(address.parse(self.url)).call("GET", "/readyz")
                return
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError("agentd serve did not come up")
            time.sleep(0.005)

    def _close(self) -> None:
        self._process.terminate()
        self._process.wait(60)
        with contextlib.suppress(Exception):
            from agentd.sandbox.supervisor import client

            link = client.connect(str(self.state / "supervisor.sock"), lambda *_: None)
            link.ask("shutdown")
            link.lost.wait(30)
            link.close()


def service(rounds: int) -> list[Case]:
    with ExitStack() as stack:
        daemon = Daemon(stack)
        time.sleep(2)  # its pool fills
        daemon.fresh = daemon.memory()
        return [
            _guarded("daemon", "one request to the daemon", "ms", _latency, daemon, rounds),
            _guarded("daemon-policy", "true, sync SDK", "ms", _policies, daemon, rounds),
            _guarded("daemon-rate", "requests a second", "per s", _rates, daemon, rounds),
            _guarded("daemon-size", "the daemon's memory", "MB", _sizes, daemon, rounds),
            _guarded("daemon-cli", "whole processes", "ms", _processes, daemon, rounds),
        ]


def _guarded(
    key: str, title: str, unit: str, work: Callable[..., None], daemon: Daemon, rounds: int
) -> Case:
    case = Case(key, title, unit)
    try:
        work(case, daemon, rounds)
    except Exception as why:
        case.skipped["agentd"] = reason(why)
    return case


# --- one request ---


def _latency(case: Case, daemon: Daemon, rounds: int) -> None:
    contenders: dict[str, Contender] = {
        "runc exec": oci_exec("runc"),
        "runsc exec": oci_exec("runsc"),
        "true, sync SDK": lambda stack: _sync(stack, daemon),
        "true, async SDK": lambda stack: _async(stack, daemon),
        "a call that runs nothing": lambda stack: _nothing(stack, daemon),
        "create, true, kill": lambda stack: lambda: _whole(daemon),
    }
    interleave(case, contenders, max(1, rounds // 4), 60, turn=10)
    for row in case.rows:
        row.isolates = row.isolates or WALL
    case.note = "authenticated by the socket's peer, its output journalled, its record on disk"
    case.targets = [
        Target("true through the sync SDK at most 2.2 ms", case.median("true, sync SDK"), 2.2),
        Target("true through the async SDK at most 2.2 ms", case.median("true, async SDK"), 2.2),
        Target(
            "runc exec at least 10x slower", case.ratio("runc exec", "true, sync SDK"), 10, True
        ),
        Target(
            "runsc exec at least 10x slower", case.ratio("runsc exec", "true, sync SDK"), 10, True
        ),
        Target(
            "a call that runs nothing at most 0.5 ms", case.median("a call that runs nothing"), 0.5
        ),
        Target("create, true, kill at most 5 ms", case.median("create, true, kill"), 5),
    ]


def _policies(case: Case, daemon: Daemon, rounds: int) -> None:
    """Beside a daemon without a policy; the audit log and receipts are with both."""
    with ExitStack() as stack:
        without = Daemon(stack, policy="none")
        contenders: dict[str, Contender] = {
            "policy none": lambda inner: _sync(inner, without),
            "policy permissive": lambda inner: _sync(inner, daemon),
        }
        interleave(case, contenders, rounds, 30, turn=10)
    none, permissive = case.median("policy none"), case.median("policy permissive")
    if none is not None and permissive is not None:
        case.targets = [Target("a policy adds at most 0.8 ms", permissive - none, 0.8)]


def _sync(stack: ExitStack, daemon: Daemon) -> Callable[[], None]:
    from agentd import Sandbox

    box = Sandbox.create(url=daemon.url)
    stack.callback(box.kill)
    return lambda: _check(box.run([TRUE]))


def _async(stack: ExitStack, daemon: Daemon) -> Callable[[], None]:
    from agentd import AsyncSandbox

    runner = stack.enter_context(asyncio.Runner())
    box = runner.run(AsyncSandbox.create(url=daemon.url))
    stack.callback(lambda: runner.run(box.kill()))
    return lambda: _check(runner.run(box.run([TRUE])))


def _nothing(stack: ExitStack, daemon: Daemon) -> Callable[[], None]:
    from agentd.client.http import address, client
    from agentd.model.api import SandboxPage

    asker = client.HttpClient(address.parse(daemon.url))
    query = (("label", "none=such"),)
    return lambda: asker.call("GET", "/v1/sandboxes", into=SandboxPage, query=query) and None


def _whole(daemon: Daemon) -> None:
    from agentd import Sandbox

    box = Sandbox.create(url=daemon.url)
    try:
        _check(box.run([TRUE]))
    finally:
        box.kill()


def _check(result: Any) -> None:
    assert result.exit_code == 0, result


# --- many ---


def _rates(case: Case, daemon: Daemon, rounds: int) -> None:
    from agentd import Sandbox

    boxes = [Sandbox.create(url=daemon.url) for _ in range(WORKERS)]
    execs = _rate(5.0, [lambda box=box: _check(box.run([TRUE])) for box in boxes])
    for box in boxes:
        box.kill()
    fresh = _rate(30.0, [lambda: _whole(daemon)] * WORKERS)
    left = len(list(_listed(daemon)))
    stream = [_stream(daemon) for _ in range(3)]
    case.rows = [
        Row(f"true, {WORKERS} at once", WALL, [execs]),
        Row(f"fresh sandboxes, {WORKERS} at once, 30 s", WALL, [fresh]),
        Row("MB of stdout", WALL, stream),
    ]
    case.note = f"sandboxes left after the fresh ones: {left}"
    case.targets = [
        Target("true at least 700 a second", execs, 700, True),
        Target("fresh sandboxes at least 150 a second, none lost or left", fresh, 150, True),
        Target("none left", left, 0),
        Target("1 GiB of stdout at least 500 MB/s", case.median("MB of stdout"), 500, True),
    ]


def _rate(seconds: float, works: list[Callable[[], None]]) -> float:
    """Of all together; an error of any of them is an error of the measurement."""
    counts, errors = [0] * len(works), []
    end = time.monotonic() + seconds

    def drive(index: int) -> None:
        try:
            while time.monotonic() < end:
                works[index]()
                counts[index] += 1
        except Exception as why:
            errors.append(why)

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(len(works))]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts) / (time.monotonic() - begin)


def _listed(daemon: Daemon) -> Iterator[str]:
    from agentd.client.http import address, client
    from agentd.model.api import SandboxPage

    page = client.HttpClient(address.parse(daemon.url)).call(
        "GET", "/v1/sandboxes", into=SandboxPage
    )
    return (view.id for view in page.sandboxes)


def _stream(daemon: Daemon) -> float:
    """MB/s of a started process's raw output, from its first byte to its last."""
    from agentd import Sandbox
    from agentd.client.http import address, client

    box = Sandbox.create(url=daemon.url)
    try:
        asker = client.HttpClient(address.parse(daemon.url))
        begin = time.perf_counter()
        process = box.start(["head", "-c", str(GIB), "/dev/zero"])
        path = f"/v1/sandboxes/{box.id}/processes/{process.id}/output"
        query = (("stream", "stdout"), ("follow", "true"))
        total = 0
        with asker.open("GET", path, query=query) as response:
            while data := response.read1(1 << 20):
                total += len(data)
        assert total == GIB, f"{total} of {GIB} bytes came"
        process.detach()
        return total / (time.perf_counter() - begin) / 1e6
    finally:
        box.kill()


# --- its size ---


def _sizes(case: Case, daemon: Daemon, rounds: int) -> None:
    from agentd import Sandbox

    idle = daemon.memory()
    box = Sandbox.create(url=daemon.url)
    process = box.start(["sleep", "600"])
    with ExitStack() as stack:
        before = daemon.memory()
        for _ in range(FOLLOWERS):
            stack.enter_context(_follower(daemon, box.id, process.id))
        time.sleep(1)
        followers = daemon.memory() - before
    process.kill()
    box.kill()
    case.rows = [
        Row("idle, just started, pool filled", "", [daemon.fresh]),
        Row("idle, after all of the above", "", [idle]),
        Row(f"{FOLLOWERS} idle followers", "", [followers]),
    ]
    case.targets = [
        Target("idle under 80 MB", daemon.fresh, 80),
        Target(f"{FOLLOWERS} idle WebSocket followers under 20 MB", followers, 20),
    ]


def _follower(daemon: Daemon, box: str, process: str) -> socket.socket:
    """A WebSocket to a process's output, whose handshake is done, and which is read no more."""
    follower = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    follower.connect(str(daemon.socket))
    path = f"/v1/sandboxes/{box}/processes/{process}/attach"
    head = ["Host: localhost", "Upgrade: websocket", "Connection: Upgrade"]
    head += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="]
    follower.sendall("\r\n".join([f"GET {path} HTTP/1.1", *head, "", ""]).encode())
    answer = follower.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return follower


# --- the command line ---


def _processes(case: Case, daemon: Daemon, rounds: int) -> None:
    from agentd import Sandbox

    box = Sandbox.create(url=daemon.url)
    environment = {**os.environ, "AGENTD_URL": daemon.url}

    def run(*words: str) -> None:
        subprocess.run([daemon.agentd, *words], env=environment, check=True, capture_output=True)

    works: dict[str, Callable[[], None]] = {
        "python3 -c pass": lambda: (
            subprocess.run([sys.executable, "-c", "pass"], check=True) and None
        ),
        "agentd --version": lambda: run("--version"),
        "agentd exec": lambda: run("exec", box.id, "--", "true"),
    }
    case.rows = [Row(name, "") for name in works]
    for _ in range(max(5, rounds // 4)):
        for row in case.rows:
            row.samples.append(milliseconds(works[row.name]))
    case.rows.append(Row("serve, to ready", "", [daemon.start_ms]))
    box.kill()
    case.targets = [
        Target("agentd --version at most 40 ms", case.median("agentd --version"), 40),
        Target("agentd exec at most 120 ms", case.median("agentd exec"), 120),
        Target("ready in under 1 s", daemon.start_ms, 1000),
    ]
