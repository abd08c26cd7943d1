"""What the agent imports late: when it is asked for, or by and by while nobody asks."""

import importlib
import os
import subprocess
import sys

import agentd
from agentd.guest import late

SOURCE = os.path.dirname(os.path.dirname(agentd.__file__))
MODULES = sorted(set(late.OPERATIONS.values()))


def run(code: str) -> str:
    """What it prints, in an interpreter that has imported nothing yet."""
    code = f"import sys; sys.path.insert(0, {SOURCE!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-E", "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_each_operation_is_where_the_table_says() -> None:
    there = {
        name: module for module in MODULES for name in importlib.import_module(module).OPERATIONS
    }
    assert there == late.OPERATIONS


def test_an_agent_that_is_born_imports_none_of_it() -> None:
    """Nor what only hosts need, nor what builds a wall or a filter."""
    found = run(
        "from agentd.guest.zygote import contained, in_gvisor\n"
        f"names = {[*MODULES, 'agentd.guest.v1', 'agentd.guest.zygote.box', 'threading']!r}\n"
        "names += ['agentd.linux.seccomp']\n"
        "print([name for name in names if name in sys.modules])"
    )
    assert found == "[]"


def test_it_has_all_of_it_by_and_by_and_needs_no_file_then() -> None:
    found = run(
        "from agentd.guest import agent, late\n"
        "from agentd.guest.loop import Loop\n"
        "loop = Loop()\n"
        "late.in_quiet_moments(loop)\n"
        "loop.run()\n"  # it ends with the last timer
        "sys.path.clear()\n"
        "before = set(sys.modules)\n"
        "agent.preload()\n"
        "print(sorted(set(sys.modules) - before))"
    )
    assert found == "[]"


def test_what_is_asked_for_before_is_imported_then() -> None:
    found = run(
        "from agentd.guest import late\n"
        "class Channel:\n"
        "    def finish(self, name, **fields): print(name, *fields)\n"
        "assert 'agentd.guest.fs' not in sys.modules\n"
        "late.operations()['fs.stat'](Channel(), {'path': '/'}, [])"
    )
    assert found.startswith("result ")
