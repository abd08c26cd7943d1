"""A copy of a sandbox with 1 GiB in its workspace, beside a copy of as much for bubblewrap."""

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import peers
from cases import CHUNK, GIB, Contender, Work, interleave, sandbox_class
from peers import TRUE
from stats import Case, Target

_FILL = f"head -c {GIB} /dev/zero | tr '\\0' x > /workspace/large"
_MOST_MS = 10.0


def forks(rounds: int) -> Case:
    case = Case("fork", "fork of a sandbox with 1 GiB in its workspace", "ms")
    case.note = (
        "agentd: fork(1), until the new sandbox is ready, and its end. bubblewrap has no fork: a "
        "copy of the folder in memory and a sandbox on it, as a harness would do it"
    )
    contenders: dict[str, Contender] = {"agentd": _agentd, "bubblewrap": _bubblewrap}
    interleave(case, contenders, rounds, 60)
    case.targets = [
        Target("at most 10 ms", case.median("agentd"), _MOST_MS),
        Target("at most 0.1x a copy for bubblewrap", case.ratio("agentd", "bubblewrap"), 0.1),
    ]
    return case


def _agentd(stack: ExitStack) -> Work:
    create = sandbox_class().create
    source = stack.enter_context(create(backend="linux", disk="3G", memory="4G", embedded=True))
    source.run(_FILL, check=True)

    def work() -> None:
        (copy,) = source.fork()
        copy.close()

    return work


def _bubblewrap(stack: ExitStack) -> Work:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
    with (folder / "large").open("wb") as file:
        for _ in range(GIB // CHUNK):
            file.write(b"x" * CHUNK)

    def work() -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as copy:
            shutil.copyfile(folder / "large", f"{copy}/large")
            peers.run(peers.bubblewrap("--bind", copy, "/workspace", TRUE))

    return work
