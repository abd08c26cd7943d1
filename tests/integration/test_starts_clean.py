"""A command starts with no signal ignored or blocked, whatever its caller was started with."""

import ctypes
import subprocess
import sys

import pytest

RT_SIGACTION = {"x86_64": 13, "aarch64": 134}
IGNORED = 1


def ignore_those_of_the_c_library() -> None:
    """32 and 33, as a posix_spawn(3) of glibc before 2.39 leaves them. sigaction(3) refuses."""
    import os

    ignore = (ctypes.c_uint64 * 4)(IGNORED)
    for number in (32, 33):
        ctypes.CDLL(None).syscall(RT_SIGACTION[os.uname().machine], number, ignore, None, 8)


@pytest.mark.parametrize("script", ["{}", "sleep 100 & {}; kill $!"], ids=["alone", "crowded"])
def test_the_c_librarys_own_signals_are_not_ignored(script: str) -> None:
    show = "grep -E '^Sig(Ign|Blk)' /proc/self/status"
    done = subprocess.run(
        [sys.executable, "-m", "agentd", "run", "--", "sh", "-c", script.format(show)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=ignore_those_of_the_c_library,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    masks = dict(line.split() for line in done.stdout.splitlines())
    assert masks == {"SigIgn:": "0" * 16, "SigBlk:": "0" * 16}


# A process of agentd's own, which says how often it looked for garbage.
_COUNTED = """
import atexit, gc, sys
from agentd.client.cli.main import main
times = []
gc.collect()
gc.callbacks.append(lambda phase, about: times.append(phase))
atexit.register(lambda: print(times, flush=True))
sys.exit(main())
"""


def test_a_command_looks_for_no_garbage_as_it_starts() -> None:
    """All that it makes stays; it was looked through twenty times, a tenth of what it takes."""
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED, "run", "--embedded", "--", "true"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
