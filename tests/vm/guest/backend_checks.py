"""Sandboxes of the ``linux`` wall with limits, on a real version 2 kernel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from group_checks import MIB, TOP, Facts, fields, read

from agentd.model.errors import BackendLost
from agentd.model.limits import Limits
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.linux.backend import LinuxBackend
from agentd.transport.guest import Guest

Run = Callable[..., Facts]
# busybox takes the whole block as one buffer and fills it.
EAT = ("dd", "if=/dev/zero", "of=/dev/null", "bs=128M", "count=1")
FORKS = "for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; wait"


@contextmanager
def _sandbox(limits: Limits, without: frozenset[str] = frozenset()) -> Iterator[tuple[Run, Any]]:
    backend = LinuxBackend(without)
    try:
        wall = backend.launch(backend.plan(SandboxSpec(limits=limits)))
        guest = Guest(wall.open_stream, passes_descriptors=True)

        def run(*argv: str) -> Facts:
            end, stdout, stderr, _ = guest.run(ExecRequest(argv, cwd=wall.workspace, timeout=20.0))
            return {
                "code": end.exit_code,
                "signal": end.signal,
                "cause": end.cause.code,
                "out": stdout.decode(),
                "err": stderr.decode(),
            }

        try:
            yield run, wall
        finally:
            guest.close()
            wall.kill()
    finally:
        backend.close()


def _sandboxes() -> list[str]:
    return sorted(path.name for path in TOP.glob("agentd/sbx-*"))


def sandbox_probe() -> Facts:
    backend = LinuxBackend()
    try:
        found = backend.probe()
        return {"usable": found.usable, "notes": found.notes, "blockers": repr(found.blockers)}
    finally:
        backend.close()


def sandbox_memory() -> Facts:
    with _sandbox(Limits(memory=64 * MIB)) as (run, wall):
        facts: Facts = {
            "groups": _sandboxes(),
            "enforcement": {
                name: [control.asked, control.enforced, control.detail]
                for name, control in wall.enforcement.items()
            },
            "true": run("true"),
            "limit inside": run("sh", "-c", "read x < /sys/fs/cgroup/memory.max; echo $x"),
            "groups inside": run("sh", "-c", "for d in /sys/fs/cgroup/*/; do echo $d; done"),
            "written inside": run("sh", "-c", "echo 1 > /sys/fs/cgroup/memory.max"),
            "before": wall.counters(),
            "bomb": run(*EAT),
            "after": wall.counters(),
            "still": run("sh", "-c", "echo on"),
            "usage": wall.usage(),
            "alive": wall.alive(),
        }
        directory = TOP / "agentd" / facts["groups"][0]
        facts["max"] = read(directory / "memory.max")
    return facts | {"left": _sandboxes()}


def sandbox_without_memory_limit() -> Facts:
    """What proves that it is the limit that kills."""
    with _sandbox(Limits()) as (run, _):
        return {"bomb": run(*EAT)}


def sandbox_files_count_as_memory() -> Facts:
    with _sandbox(Limits(memory=64 * MIB, disk=256 * MIB)) as (run, wall):
        facts: Facts = {}
        try:
            facts["write"] = run("dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=128")
        except BackendLost:
            facts["lost"] = wall.wait(120)
        facts["counters"] = wall.counters()
        facts["peak"] = wall.usage()["peak_memory_bytes"]
    return facts | {"left": _sandboxes()}


def sandbox_pids_and_cpu() -> Facts:
    # Without rlimits, so that the group alone can have stopped the forks.
    with _sandbox(Limits(pids=8, cpus=0.2), frozenset({"rlimits"})) as (run, wall):
        directory = TOP / "agentd" / _sandboxes()[0]
        facts: Facts = {
            "enforcement": {
                name: [wall.enforcement[name].enforced, wall.enforcement[name].detail]
                for name in ("pids", "cpus")
            },
            "forks": run("sh", "-c", FORKS),
            "counters": wall.counters(),
        }
        run("timeout", "2", "sh", "-c", "while true; do :; done")
        facts["cpu"] = fields(directory / "cpu.stat")
    return facts | {"left": _sandboxes()}


CHECKS: tuple[Callable[[], Facts], ...] = (
    sandbox_probe,
    sandbox_memory,
    sandbox_without_memory_limit,
    sandbox_files_count_as_memory,
    sandbox_pids_and_cpu,
)
