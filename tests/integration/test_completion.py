"""Tab in a shell that has read ``agentd completion``."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

# As bash itself does it: the words so far, then the function that was named to ``complete``.
_TAB = """
eval "$(agentd completion bash)"
complete -p agentd >&2
for line in "$@"; do
    IFS=' ' read -ra COMP_WORDS <<<"$line"
    [[ $line == *' ' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    _agentd
    echo "${COMPREPLY[*]}"
done
"""


def test_bash_completes_commands_actions_options_and_choices() -> None:
    asked = {
        "agentd ru": "run",
        "agentd help au": "audit",
        "agentd key ": "create ls revoke",
        "agentd image bu": "build",
        "agentd image build --b": "--build-arg --base",
        "agentd audit verify --h": "--help --head",
        "agentd run --iso": "--isolation",
        "agentd logs --stream ": "stdout stderr pty",
        "agentd run --isolation ": "none process namespace userspace-kernel microvm",
        "agentd run --backend q": "qemu",
        "agentd run --net ": "none host",
        "agentd run --user ": "root sandbox",
        "agentd image build --base ": "debian busybox",
        "agentd run -w ": "",
        "agentd run --memory ": "",
        "agentd run -- ": "",  # files, which bash knows
        "agentd nonsense ": "",
        "agentd key ls ": "",
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", _TAB, "bash", *asked],
        env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "-F _agentd agentd" in done.stderr
    assert dict(zip(asked, done.stdout.splitlines(), strict=True)) == asked


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_scripts_ask_the_same_command(shell: str) -> None:
    words = [sys.executable, "-m", "agentd", "completion", shell]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert "agentd completion words -- " in done.stdout
    assert shlex.split(done.stdout, comments=True)
