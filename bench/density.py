"""What one idle sandbox costs in memory: the whole machine before and after, and PSS."""

import gc
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import peers
from cases import reason, sandbox_class
from peers import ISOLATES
from stats import Case, Row, Target

MB = 1_000_000
SETTLE = 2.0  # seconds for the kernel's deferred frees
BUDGET = 90.0  # seconds for one contender's sandboxes
SLEEP = ("/usr/bin/sleep", "900")


def idle(count: int) -> Case:
    """``count`` agentd sandboxes at once, and fewer of the peers, which are dearer to start."""
    case = Case("idle", f"{count} idle sandboxes, memory each", "MB")
    case.note = "system: MemAvailable before less after; PSS: every process's, after less before"
    some = max(1, count // 5)
    contenders: dict[str, tuple[int, Callable[[ExitStack], Iterator[None]]]] = {
        "posix_spawn": (some, lambda stack: _spawned(stack, list(SLEEP))),
        "bubblewrap": (some, lambda stack: _spawned(stack, peers.bubblewrap(*SLEEP))),
        "runc": (max(1, count // 50), lambda stack: _oci(stack, "runc")),
        "runsc": (max(1, count // 200), lambda stack: _oci(stack, "runsc")),
        "agentd": (count, _agentd),
    }
    for name, (wanted, start) in contenders.items():
        try:
            made, system, pss = _measure(wanted, start)
        except Exception as why:
            case.skipped[name] = reason(why)
            continue
        case.rows.append(Row(f"{name} system", f"n={made}; {ISOLATES[name]}", [system]))
        case.rows.append(Row(f"{name} PSS", f"n={made}; {ISOLATES[name]}", [pss]))
    case.targets = [Target("at most 1.5 MB each", case.median("agentd system"), 1.5)]
    return case


def _measure(count: int, start: Callable[[ExitStack], Iterator[None]]) -> tuple[int, float, float]:
    """(sandboxes made, MB of system memory each, MB of PSS each)."""
    _allow_descriptors()
    with ExitStack() as stack:
        starts = start(stack)
        next(starts)  # what all of them share is there before the first count
        _settle()
        available, pss = _available(), _pss()
        made, end = 0, time.monotonic() + BUDGET
        while made < count and time.monotonic() < end:
            next(starts)
            made += 1
        _settle()
        return made, (available - _available()) / made / MB, (_pss() - pss) / made / MB


def _spawned(stack: ExitStack, argv: list[str]) -> Iterator[None]:
    while True:
        pid = peers.spawn(argv)
        stack.callback(peers.end, pid)
        yield


def _oci(stack: ExitStack, name: str) -> Iterator[None]:
    runtime = stack.enter_context(peers.oci(name))
    bundle = runtime.bundle(*SLEEP)
    while True:
        runtime.start(bundle)
        yield


def _agentd(stack: ExitStack) -> Iterator[None]:
    sandbox = sandbox_class()
    while True:
        stack.enter_context(sandbox.create())
        yield


def _allow_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settle() -> None:
    gc.collect()
    time.sleep(SETTLE)


def _available() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _pss() -> int:
    """Bytes of every process that we may look at."""
    total = 0
    for rollup in Path("/proc").glob("[0-9]*/smaps_rollup"):
        try:
            lines = rollup.read_text().splitlines()
        except OSError:  # it ended, is a kernel thread, or is another user's
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
