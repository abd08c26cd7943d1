"""The five measured cases. A contender is a context manager that yields the work of one round."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peers
from peers import ISOLATES, TRUE, Absent, Oci
from stats import Case, Row, Target, milliseconds

#: One round; a float that it returns is what it measured itself, in place of the time it took.
Work = Callable[[], object]
Contender = Callable[[ExitStack], Work]
GIB = 1 << 30
CHUNK = 1 << 20
HEAD = ("/usr/bin/head", "-c", "1G", "/dev/zero")


def sandbox_class() -> Any:
    """agentd's SDK, as a user imports it."""
    try:
        from agentd import Sandbox
    except ImportError as error:
        raise Absent(f"agentd's SDK does not load: {error}") from error
    return Sandbox


def interleave(
    case: Case,
    contenders: dict[str, Contender],
    rounds: int,
    budget: float,
    turn: int = 1,
    pause: float = 0.0,
) -> Case:
    """Every contender ``turn`` times a round, in a new order each, after one round unmeasured.

    In a fixed order one of them would always follow the heaviest, and find cold caches. ``pause``
    are seconds after each, for what it has started for its next turn.

    It ends after ``budget`` seconds; whoever has used a quarter of them sits out the rest. One
    that fails leaves the table, and the reason is kept.
    """
    with ExitStack() as stack:
        works: dict[str, Work] = {}
        for name, prepare in contenders.items():
            try:
                work = prepare(stack)
                work()
                works[name] = work
            except Exception as why:
                case.skipped[name] = reason(why)
        case.rows = [Row(name, isolation(name)) for name in works]
        end = time.monotonic() + budget
        order = random.Random(0)  # noqa: S311  (not a secret)
        for _ in range(rounds):
            rows = [row for row in case.rows if sum(row.samples) < budget * 250]
            for row in order.sample(rows, len(rows)):
                for _ in range(turn):
                    if row in case.rows:
                        _measure(case, row, works[row.name])
                        time.sleep(pause)
            if time.monotonic() > end:
                break
    return case


def _measure(case: Case, row: Row, work: Work) -> None:
    try:
        row.samples.append(milliseconds(work))
    except Exception as why:
        case.rows.remove(row)
        case.skipped[row.name] = f"failed after {len(row.samples)} rounds: {reason(why)}"


def reason(why: Exception) -> str:
    return str(why) if isinstance(why, Absent) else f"{type(why).__name__}: {why}"


def isolation(name: str) -> str:
    """``runc exec`` isolates what ``runc`` does."""
    return ISOLATES.get(name) or ISOLATES.get(name.split(" ", 1)[0], "")


def _command(argv: Callable[[], list[str]]) -> Contender:
    def prepare(_: ExitStack) -> Work:
        words = argv()
        return lambda: peers.run(words)

    return prepare


# --- a fresh sandbox, /bin/true, destroyed ---


def fresh(rounds: int) -> Case:
    case = Case("fresh", "fresh sandbox, /bin/true, destroyed", "ms")
    case.note = (
        "agentd: Sandbox.create, run, close, in a process whose zygote already runs and has "
        "cloned the next sandbox in idle time; the row below it, without such a clone. When close "
        "returns nothing runs any more; its cgroup is removed a moment later"
    )
    contenders: dict[str, Contender] = {
        "posix_spawn": _command(lambda: [TRUE]),
        "subprocess": lambda _: lambda: _check(subprocess.run([TRUE], check=True)),
        "bubblewrap": _command(lambda: peers.bubblewrap(TRUE)),
        "nsjail": _command(lambda: peers.nsjail(TRUE)),
        "sandlock": _sandlock,
        "runc": oci_run("runc"),
        "runsc": oci_run("runsc"),
        "agentd": _agentd_fresh(),
        # Another user inside is a request that no waiting clone can take.
        "agentd (none ahead)": _agentd_fresh(user="root"),
    }
    interleave(case, contenders, rounds, 60)
    case.targets = [
        Target("at most 0.85x bubblewrap", case.ratio("agentd", "bubblewrap"), 0.85),
        Target("at most 0.15x runc", case.ratio("agentd", "runc"), 0.15),
    ]
    return case


def _check(done: object) -> None:
    assert done


def _sandlock(_: ExitStack) -> Work:
    try:
        from sandlock import Sandbox
    except ImportError as error:
        raise Absent(f"sandlock does not load: {error}") from error
    box = Sandbox(fs_readable=["/usr", "/bin", "/lib", "/lib64"])
    return lambda: _check(box.run([TRUE]).success)


def oci_run(name: str) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        runtime = stack.enter_context(peers.oci(name))
        bundle = runtime.bundle(TRUE)
        return lambda: peers.run(runtime.run(bundle))

    return prepare


def _agentd_fresh(**options: str) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        sandbox = sandbox_class()
        stack.enter_context(sandbox.create())  # keeps the zygote

        def work() -> None:
            with sandbox.create(**options) as box:
                assert box.run([TRUE]).exit_code == 0

        return work

    return prepare


# --- a command in a warm sandbox ---


def warm(rounds: int) -> Case:
    case = Case("warm", "/bin/true in a warm sandbox", "ms")
    contenders: dict[str, Contender] = {
        "posix_spawn": _command(lambda: [TRUE]),
        "subprocess": lambda _: lambda: _check(subprocess.run([TRUE], check=True)),
        "runc exec": oci_exec("runc"),
        "runsc exec": oci_exec("runsc"),
        "agentd": _agentd_warm,
    }
    case.note = "in turns of ten commands each, as a session has them"
    interleave(case, contenders, max(1, rounds // 4), 40, turn=10)
    case.targets = [
        Target("at most 1.6x posix_spawn", case.ratio("agentd", "posix_spawn"), 1.6),
        Target("runc exec at least 20x slower", case.ratio("runc exec", "agentd"), 20, True),
    ]
    return case


def oci_exec(name: str) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        runtime = stack.enter_context(peers.oci(name))
        container = runtime.start(runtime.bundle("/usr/bin/sleep", "600"))
        return lambda: peers.run(runtime.exec(container, TRUE))

    return prepare


def _agentd_warm(stack: ExitStack) -> Work:
    box = stack.enter_context(sandbox_class().create())

    def work() -> None:
        assert box.run([TRUE]).exit_code == 0

    return work


# --- 1 GiB of stdout ---


def stdout(rounds: int) -> Case:
    case = Case("stdout", "1 GiB of stdout to the host", "MiB/s")
    contenders: dict[str, Contender] = {
        "plain pipe": _piped(lambda: list(HEAD)),
        "bubblewrap": _piped(lambda: peers.bubblewrap(*HEAD)),
        "runc": _oci_piped("runc"),
        "runsc": _oci_piped("runsc"),
        "agentd": _agentd_stream,
    }
    interleave(case, contenders, min(rounds, 7), 60)
    for row in case.rows:
        row.samples = [1024 / (ms / 1000) for ms in row.samples]
    ratio = case.ratio("agentd", "plain pipe")
    case.targets = [Target("at least 0.7x a plain pipe", ratio, 0.7, at_least=True)]
    return case


def _piped(argv: Callable[[], list[str]]) -> Contender:
    def prepare(_: ExitStack) -> Work:
        words = argv()
        return lambda: peers.drain(words, CHUNK, GIB)

    return prepare


def _oci_piped(name: str) -> Contender:
    def prepare(stack: ExitStack) -> Work:
        runtime: Oci = stack.enter_context(peers.oci(name))
        bundle = runtime.bundle(*HEAD)
        return lambda: peers.drain(runtime.run(bundle), CHUNK, GIB)

    return prepare


def _agentd_stream(stack: ExitStack) -> Work:
    box = stack.enter_context(sandbox_class().create())

    def work() -> None:
        with box.stream(list(HEAD)) as process:
            total = sum(len(chunk.data) for chunk in process)
            assert process.result.status == "ok", process.result.cause
        assert total == GIB, total

    return work


# --- agentd run as a whole process ---


def cli(rounds: int) -> Case:
    case = Case("cli", "agentd run -- true, the whole process", "ms")
    agentd = str(Path(sys.executable).with_name("agentd"))
    contenders: dict[str, Contender] = {
        "python3 -c pass": _command(lambda: [sys.executable, "-c", "pass"]),
        "bubblewrap": _command(lambda: peers.bubblewrap(TRUE)),
        "runc": oci_run("runc"),
        "runsc": oci_run("runsc"),
        "agentd run": _command(lambda: [agentd, "run", "--", "true"]),
    }
    interleave(case, contenders, rounds, 30)
    case.targets = [Target("at most 150 ms", case.median("agentd run"), 150)]
    return case
