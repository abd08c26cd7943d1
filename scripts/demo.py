"""The demo: real work behind the wall, attacks on it, and what the wall reports of itself.

Everything goes through ``agentd run --json``, as a user's own program would.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
AGENTD = str(Path(sys.executable).with_name("agentd"))
console = Console(highlight=False)

# What an agent might have written: it is not trusted, and only sees what it is given.
UNTRUSTED = """
import hashlib, pathlib
files = sorted(pathlib.Path(".").rglob("*.py"))
lines = sum(f.read_bytes().count(b"\\n") for f in files)
digest = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()
print(f"{len(files)} files, {lines} lines, sha256 {digest}")
try:
    pathlib.Path("planted.py").write_text("evil")
    print("and the read-only workspace could be written: the wall has a hole")
except OSError as error:
    print(f"writing into it: {error.strerror}")
"""

BOMB = """
import os, time
made = 0
try:
    while made < 5000:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        made += 1
    print("no limit held it")
except OSError as error:
    print(f"stopped at {made} processes: {error.strerror}")
"""

CONNECT = """
import socket
try:
    socket.create_connection(("1.1.1.1", 443), 2)
    print("connected")
except OSError as error:
    print(error.strerror or error)
"""

# (what is tried, options, the command, what its output must not say)
ATTACKS = [
    ("read /etc/shadow", [], ["sh", "-c", "cat /etc/shadow 2>&1"], "root:"),
    ("see the host's processes", [], ["sh", "-c", "ls -d /proc/[0-9]* | wc -l"], None),
    ("reach the network", [], ["python3", "-c", CONNECT], "connected"),
    ("mount a file system", [], ["sh", "-c", "mount -t tmpfs x /tmp 2>&1"], None),
    ("a fork bomb", ["--pids", "64"], ["python3", "-c", BOMB], "no limit"),
    ("eat 1 GiB of memory", ["--memory", "128M"], ["python3", "-c", "b'x' * (1 << 30)"], None),
    ("run for ever", ["--timeout", "1s"], ["sh", "-c", "trap '' TERM; while :; do :; done"], None),
]


class Failed(Exception):
    """The demo cannot show what it promises."""


def agentd(options: list[str], command: list[str]) -> dict[str, Any]:
    """``agentd run --json``'s object. Raises Failed where the sandbox could not be made."""
    argv = [AGENTD, "run", "--json", *options, "--", *command]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise Failed(done.stderr.strip() or f"no answer, exit code {done.returncode}") from None
    if not isinstance(answer, dict) or "enforcement" not in answer:
        raise Failed(done.stdout.strip())
    return answer


def heading(text: str) -> None:
    console.print(f"\n[bold]{text}[/bold]")


def show_work() -> dict[str, Any]:
    heading("1. An untrusted script reads this checkout's source, mounted read-only")
    answer = agentd(["-w", f"{ROOT / 'src'}:ro", "-C", "/workspace"], ["python3", "-c", UNTRUSTED])
    if answer["exit_code"] != 0:
        raise Failed(f"{answer['cause']['message']}: {answer['stderr'].strip()}")
    for line in answer["stdout"].splitlines():
        console.print(f"   {line}", markup=False, soft_wrap=True)
    timing = answer["timing"]
    console.print(f"   sandbox {timing['setup_ms']:.0f} ms, command {timing['exec_ms']:.0f} ms")
    return answer


def show_attacks() -> bool:
    heading("2. What it might have tried instead")
    table = Table("attack", "the answer inside", "how it ended", "stopped")
    held = True
    for title, options, command, forbidden in ATTACKS:
        answer = agentd(options, command)
        stopped = was_stopped(title, answer, forbidden)
        held = held and stopped
        said = (answer["stdout"] + answer["stderr"]).strip().splitlines() or ["nothing"]
        table.add_row(
            title,
            escape(said[0][:60]),
            escape(answer["cause"]["message"]),
            verdict(answer, stopped),
        )
    console.print(table)
    return held


def was_stopped(title: str, answer: dict[str, Any], forbidden: str | None) -> bool:
    if refused(answer):
        return True
    if forbidden is not None:
        return bool(answer["stdout"].strip()) and forbidden not in answer["stdout"]
    if title.startswith("see"):  # the agent, the shell and its pipe: nothing of the host's
        return answer["stdout"].strip().isdecimal() and int(answer["stdout"]) < 8
    return answer["exit_code"] != 0


def show_changes() -> bool:
    heading("3. `rm -rf *` on a copy-on-write workspace: the host's files stay")
    before = sorted(path.name for path in ROOT.iterdir())
    answer = agentd(["-w", f"{ROOT}:cow"], ["sh", "-c", "rm -rf *; echo hi > new.txt"])
    changes = answer.get("changes", [])
    for line in changes[:6]:
        console.print(f"   {line}", markup=False, soft_wrap=True)
    if len(changes) > 6:
        console.print(f"   ... {len(changes)} changes in all")
    same = before == sorted(path.name for path in ROOT.iterdir())
    console.print(f"   on the host: {'every file is still there' if same else 'FILES CHANGED'}")
    return same and bool(changes)


def show_wall(answer: dict[str, Any]) -> None:
    sandbox = answer["sandbox"]
    heading(f"4. The wall it ran behind: {sandbox['backend']}, level {sandbox['level']}")
    table = Table("control", "asked", "enforced", "detail")
    for name, control in answer["enforcement"].items():
        enforced, detail = mark(control["enforced"]), escape(control["detail"])
        table.add_row(escape(name), control["asked"], enforced, detail)
    console.print(table)


def refused(answer: dict[str, Any]) -> bool:
    """A limit that cannot be enforced here is not run without it."""
    return answer["sandbox"] is None


def verdict(answer: dict[str, Any], stopped: bool) -> str:
    return "[yellow]refused[/yellow]" if refused(answer) else mark(stopped)


def mark(good: bool) -> str:
    return "[green]yes[/green]" if good else "[red]no[/red]"


def main() -> int:
    try:
        answer = show_work()
        held = show_attacks()
        kept = show_changes()
        show_wall(answer)
    except Failed as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    if not (held and kept):
        console.print("demo: something above was not stopped", style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
