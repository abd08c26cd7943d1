"""The list of programs, and one of them run: outside in an empty folder, or inside in a sandbox."""

import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agentd import Sandbox

LIST = Path(__file__).with_name("programs.toml")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SECONDS = 180
NOBODY = 65534
_MODULE = "py:"


class Row(NamedTuple):
    """A program: what it needs, a script for bash, and why it may fail inside, or ""."""

    kind: str
    name: str
    needs: tuple[str, ...]
    script: str
    reason: str


class Outcome(NamedTuple):
    """``said`` is the last line that it wrote, where it failed."""

    passed: bool
    said: str


def rows(path: Path = LIST) -> Iterator[Row]:
    with path.open("rb") as file:
        table = tomllib.load(file)
    for kind in table["kind"]:
        for name, needs, script in kind["rows"]:
            why = table["reasons"].get(name, "")
            yield Row(kind["name"], name, tuple(needs.split()), script, why)


def missing(row: Row) -> str:
    """The first thing that this machine does not have of what a row needs; "" for none."""
    for need in row.needs:
        if need.startswith(_MODULE):
            code = f"import {need.removeprefix(_MODULE)}"
            found = run(["python3", "-c", code], Path("/")).passed
        else:
            found = shutil.which(need, path=PATH) is not None
        if not found:
            return need
    return ""


def outside(row: Row, *, as_root: bool) -> Outcome:
    """Of whoever runs this; of nobody where that is root, and ``as_root`` not wanted."""
    with tempfile.TemporaryDirectory(prefix="agentd-compat-") as folder:
        user = None if as_root else NOBODY
        return run(["bash", "-c", row.script], Path(folder), user=user)


def inside(row: Row, **options: Any) -> Outcome:
    with Sandbox.create(embedded=True, **options) as sandbox:
        result = sandbox.run(["bash", "-c", row.script], timeout=SECONDS)
    said = result.stderr.decode(errors="replace") or result.text
    return Outcome(result.status == "ok", last_line(said) or str(result.cause.message))


def run(
    command: Sequence[str], folder: Path, *, seconds: float = SECONDS, user: int | None = None
) -> Outcome:
    """There, and as ``user`` where this is root; the folder becomes that user's."""
    before: list[str] = []
    if user is not None and os.getuid() == 0:
        os.chown(folder, user, user)
        before = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    env = {"PATH": PATH, "HOME": str(folder), "LANG": "C.UTF-8"}
    try:
        ran = subprocess.run(
            [*before, *command],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(False, f"took more than {seconds} s")
    said = (ran.stderr or ran.stdout).decode(errors="replace")
    return Outcome(ran.returncode == 0, last_line(said))


def last_line(text: str) -> str:
    """The last that says something, cut to a cell of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:120] if lines else ""
