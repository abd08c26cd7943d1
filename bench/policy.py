"""What a policy's decision costs, and taking over a bundle that was changed."""

import itertools
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cases import reason
from stats import Case, Row, Target

SHIPPED = ("permissive", "strict", "paranoid")
PROCESS = "a process without environment, a time bound"
TARGETS_US = {"new": 250.0, "again": 20.0}
TARGET_RELOAD_MS = 2.0
_CALLS = 40  # a turn; the bundles take turns


def policy(rounds: int) -> list[Case]:
    return [
        _guarded("policy", "one decision", "us", _decisions, rounds),
        _guarded("policy-reload", "a bundle that was compiled before", "ms", _reload, rounds),
    ]


def _guarded(
    key: str, title: str, unit: str, work: Callable[[Case, int, ExitStack], None], rounds: int
) -> Case:
    case = Case(key, title, unit)
    try:
        with ExitStack() as stack:
            work(case, rounds, stack)
    except Exception as why:
        case.skipped["agentd"] = reason(why)
    return case


def _decisions(case: Case, rounds: int, stack: ExitStack) -> None:
    from agentd.policy.store import PolicyStore

    asked = _asked()
    turns: list[tuple[Row, Callable[[], object]]] = []
    for name in SHIPPED:
        new = PolicyStore(name, remember=False)
        known = PolicyStore(name)
        stack.callback(new.close)
        stack.callback(known.close)
        turns.append((Row(f"{name}, new", PROCESS), lambda new=new: new.decide(next(asked))))
        turns.append(
            (Row(f"{name}, again", PROCESS), lambda known=known: known.decide(next(asked)))
        )
    for _, decide in turns:
        decide()
    for _ in range(rounds):
        for row, decide in turns:
            row.samples += [_time(decide) * 1e6 for _ in range(_CALLS)]
    case.rows = [row for row, _ in turns]
    case.note = "new: asked of the engine; again: nothing that the policy reads has changed"
    case.targets = [
        Target(f"{row.name} at most {most:g} us", row.median, most)
        for row in case.rows
        for kind, most in TARGETS_US.items()
        if row.name.endswith(kind)
    ]


def _reload(case: Case, rounds: int, stack: ExitStack) -> None:
    from agentd.policy import source
    from agentd.policy.store import PolicyStore

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentd-")))
    manifest = (source.shipped("strict") / source.MANIFEST).read_bytes()
    data = (source.shipped("strict") / "data.json").read_bytes()
    (folder / source.MANIFEST).write_bytes(manifest)
    (folder / "data.json").write_bytes(data)
    store = PolicyStore(str(folder))
    stack.callback(store.close)
    row = Row("changed back and forth", PROCESS)
    for content in (data + b"\n", data) * (rounds + 1):
        (folder / "data.json").write_bytes(content)
        row.samples.append(_time(store.reload) * 1000)
    row.samples = row.samples[2:]  # the first of each is compiled
    case.rows = [row]
    case.targets = [
        Target(f"a reload at most {TARGET_RELOAD_MS:g} ms", row.median, TARGET_RELOAD_MS)
    ]


def _asked() -> Any:
    """Calls of the size that agents make, of which no two are the same."""
    from agentd.model.limits import MIB
    from agentd.policy.example import example

    limits = {"memory": 1024 * MIB, "cpus": 1.5, "pids": 512, "timeout": 60.0}
    for number in itertools.count():
        yield example(
            "shell.exec.v1",
            {
                "command": "python3",
                "args": ["-c", f"print({number})"],
                "env": {"A": "b"},
                "cwd": "/workspace",
                "timeout_ms": 1000,
            },
            principal="uid:1000",
            scopes=["create", "files", "read", "run"],
            sandbox={"id": f"sb_{number}", "limits": limits, "labels": {"task": "bench"}},
        )


def _time(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
