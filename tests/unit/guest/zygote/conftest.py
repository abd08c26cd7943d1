import subprocess
import sys
from collections.abc import Callable

import pytest

import agentd

SOURCE = str(agentd.__path__[0]).removesuffix("/agentd")


@pytest.fixture
def run() -> Callable[..., str]:
    """``run(code, ...)`` in a bare interpreter, with our source and the rest as arguments."""

    def run_code(code: str, *arguments: str) -> str:
        argv = [sys.executable, "-I", "-S", "-E", "-c", code, SOURCE, *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_code
