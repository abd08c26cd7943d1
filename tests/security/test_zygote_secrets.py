"""What a caller gives a sandbox is in no other one, and not in what all are copies of."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Enough that the zygote has taken its time for what makes clones cheaper, and clones ahead.
BEFORE = 20


def memory(pid: int) -> bytes:
    """All that can be read of it, which takes root."""
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            words = line.split()
            start, end = (int(word, 16) for word in words[0].split("-"))
            if not words[1].startswith("r") or words[-1] in ("[vvar]", "[vsyscall]"):
                continue
            file.seek(start)
            try:
                parts.append(file.read(end - start))
            except OSError:  # [vvar_vclock] and the like
                continue
    return b"".join(parts)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.root
@pytest.mark.parametrize("plain", [True, False])
def test_no_request_is_in_the_zygote_or_in_a_later_sandbox(
    sandbox: Callable[..., Any], plain: bool, tmp_path: Path
) -> None:
    without = () if plain else ("landlock",)  # what is not plain is cloned for its request
    env = f"env-{os.urandom(8).hex()}"
    folder = tmp_path / f"mount-{os.urandom(8).hex()}"
    folder.mkdir()
    target = f"/data-{os.urandom(8).hex()}"
    asked = {"env": {"TOKEN": env}}
    for number in range(BEFORE):
        box = sandbox("linux", without, **asked)
        assert box.run(("sh", "-c", 'echo "$TOKEN"')).stdout.strip() == env
        if number % 4 == 0:
            sandbox("linux", without, mounts=[f"{folder}:{target}:ro"], **asked)
    assert env.encode() in memory(box.wall.pid), "where it is, this sees it"
    others = [sandbox("linux", without) for _ in range(3)]
    for other in others:
        assert other.run(("true",)).exit.ok
    for pid in (parent(box.wall.pid), *(other.wall.pid for other in others)):
        seen = memory(pid)
        for secret in (env, str(folder), target):
            assert secret.encode() not in seen, (Path(f"/proc/{pid}/status").read_text(), secret)
