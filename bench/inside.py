"""What commands themselves lose by the default wall: the same program outside and inside."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import peers
from cases import Contender, Work, interleave, sandbox_class
from stats import Case, Target

PYTHON = "/usr/bin/python3"
# Says what it and its children took of the processors, in milliseconds: what else the machine
# does moves that less than the time that went by.
_SAYS = "import os; {}; t = os.times(); print(sum(t[:4]) * 1000, file=open(1, 'w'))"
_SOURCES = 12
_MAKE = f"""\
import pathlib, subprocess
body = "".join(f"int f{{n}}(int x) {{{{ return x % {{n + 2}} ? f{{n}}(x - 1) + x : {{n}}; }}}}\\n"
               for n in range(300))
names = [f"s{{n}}" for n in range({_SOURCES})]
for name in names:
    pathlib.Path(name + ".c").write_text("#include <stdio.h>\\n#include <stdlib.h>\\n" + body)
objects = " ".join(name + ".o" for name in names)
rules = f"all: {{objects}}\\n%.o: %.c\\n\\t@gcc -O1 -c $< -o $@\\nclean:\\n\\t@rm -f *.o\\n"
pathlib.Path("Makefile").write_text(rules)
subprocess.run(["make", "-s", "clean", "all"], check=True)
"""
_STATS = "exec('for _ in range(300000): os.stat(\"/usr/bin/env\")')"
_OPENS = "exec('for _ in range(200000): os.close(os.open(\"/usr/bin/env\", 0))')"
_SHELL = "for i in {1..400}; do /bin/true; done"
_SPAWNS = f"import subprocess; subprocess.run(['/bin/bash', '-c', {_SHELL!r}], check=True)"
#: Key, what it is called, the program, and how much longer it may take inside.
_PROGRAMS: tuple[tuple[str, str, str, float], ...] = (
    ("inside-stat", "300,000 stat", _STATS, 1.35),
    ("inside-open", "200,000 open and close", _OPENS, 1.35),
    ("inside-spawn", "400 commands of a shell", _SPAWNS, 1.1),
    ("inside-build", f"make of {_SOURCES} files in C", f"exec({_MAKE!r})", 1.1),
)


def inside(rounds: int) -> list[Case]:
    return [_case(*program, max(3, rounds // 10)) for program in _PROGRAMS]


def _case(key: str, title: str, program: str, most: float, rounds: int) -> Case:
    case = Case(key, f"{title}, processor time", "ms")
    argv = [PYTHON, "-I", "-c", _SAYS.format(program)]
    contenders: dict[str, Contender] = {
        "posix_spawn": lambda stack: _outside(stack, lambda folder: ["env", "-C", folder, *argv]),
        "bubblewrap": lambda stack: _outside(
            stack,
            lambda folder: peers.bubblewrap("--bind", folder, "/w", "--chdir", "/w", "--", *argv),
        ),
        "agentd": lambda stack: _agentd(stack, argv),
    }
    interleave(case, contenders, rounds, 60)
    case.targets = [Target(f"at most {most}x outside", case.ratio("agentd", "posix_spawn"), most)]
    return case


def _outside(stack: ExitStack, words: Callable[[str], list[str]]) -> Work:
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
    argv = words(folder)
    argv[0] = peers.tool(argv[0])
    said = Path(folder) / "said"

    def work() -> float:
        with said.open("wb") as out:
            peers.run(argv, out.fileno())
        return float(said.read_text())

    return work


def _agentd(stack: ExitStack, argv: list[str]) -> Work:
    box = stack.enter_context(sandbox_class().create(backend="linux", embedded=True))

    def work() -> float:
        return float(box.run(argv, check=True).stdout)

    return work
