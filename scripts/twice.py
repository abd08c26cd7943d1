"""twice.py PYTEST OPTION...: runs the tests, and those that failed once more, alone.

On a starved machine a deadline may pass. A test that fails and then passes alone is flaky: it is
named and counted, and fails the run where tests/flaky.txt names it already.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = "tests/flaky.txt"
SOME_FAILED = 1  # pytest's exit status where all ran; with every other, tests are missing


def main(options: list[str]) -> int:
    # A cache of its own: another run in this checkout must not change what failed here.
    with tempfile.TemporaryDirectory(prefix="agentd-twice-") as cache:
        if "-n" in options:
            compile_first(cache, *options)
        status = pytest(cache, *options)
        if status != SOME_FAILED:
            return status
        failed = sorted(json.loads(Path(cache, "v/cache/lastfailed").read_text()))
        print("\n--- failed; once more, alone:", *failed, sep="\n", flush=True)
        status = pytest(cache, "--last-failed", "--last-failed-no-failures", "none")
    return status or judged(failed)


def compile_first(cache: str, *options: str) -> None:
    """In one process what each worker would compile, since all of them begin with it. What is wrong
    with the tests, their run will say."""
    words = (*options, "-n0", "--collect-only", "-qq")
    subprocess.run(
        command(cache, *words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, check=False
    )


def pytest(cache: str, *options: str) -> int:
    # It has an interrupt itself, and cleans up before it ends.
    signal.signal(signal.SIGINT, lambda *_: None)
    argv = command(cache, *options)
    return subprocess.run(argv, cwd=ROOT, env=environment(), check=False).returncode


def command(cache: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "-o", f"cache_dir={cache}", *options]


def environment() -> dict[str, str]:
    # uv leaves no bytecode: what is imported is compiled once, and test modules rewritten once, not
    # by each worker and by each daemon that a test starts.
    return os.environ | {"PYTHONDONTWRITEBYTECODE": ""}


def judged(flaky: list[str]) -> int:
    """Of tests that passed alone: 1 where one of them was flaky before."""
    lines = (ROOT / LIST).read_text().splitlines()
    listed = {line.partition("  # ")[0].strip() for line in lines}
    again = [test for test in flaky if test in listed]
    print(f"\n--- FLAKY: failed and passed alone: {len(flaky)}; write into {LIST}:")
    print(*flaky, sep="\n", flush=True)
    if again:
        print(f"\n--- FAILED: in {LIST} already, and not mended", *again, sep="\n")
    if stages := os.environ.get("STAGES"):
        with open(stages, "a") as file:
            file.writelines(f"flaky {test}\n" for test in flaky)
    return 1 if again else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
