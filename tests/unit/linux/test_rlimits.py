import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.linux import rlimits


def in_child(code: str) -> str:
    """What ``code`` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", "import os, resource\nfrom agentd.linux import rlimits\n" + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(rlimits.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN_MANY = """
try:
    fds = [os.dup(0) for _ in range(100)]
    print("done")
except OSError as error:
    print(error.errno == 24)
"""


@pytest.mark.parametrize(("limits", "outcome"), [({"open_files": 50}, "True"), ({}, "done")])
def test_open_files_are_limited(limits: dict[str, int], outcome: str) -> None:
    assert in_child(f"rlimits.apply({limits})" + OPEN_MANY) == outcome


def test_soft_and_hard_are_set() -> None:
    code = "rlimits.apply({'core': 0, 'file_size': 4096})\n"
    code += "print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(1))"
    assert in_child(code) == "(0, 0) (4096, 4096)"


def test_a_hard_limit_is_never_raised() -> None:
    code = "rlimits.apply({'open_files': 60}); rlimits.apply({'open_files': 70})\n"
    code += "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert in_child(code) == "(60, 60)"


@pytest.mark.parametrize("limits", [{"open_files": 9, "nope": 1}, {"open_files": 9, "core": -1}])
def test_nothing_is_set_when_one_is_wrong(limits: dict[str, int]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(ValueError, match="rlimit"):
        rlimits.apply(limits)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
