"""A scope of the user's own systemd: a cgroup that is delegated to us, for whoever is not root.

The user's manager makes a transient scope of which this process is the first member, as it does for
rootless podman; systemd's busctl(1) asks it, over the user's D-Bus. Version 2 alone: an ordinary
user is given nothing of version 1. The scope ends with its last process. docs/adr/0027 has the
reasons.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping

from agentd.linux.cgroup import files

_MOUNT = "/sys/fs/cgroup"
_BOOTED = "/run/systemd/system"  # sd_booted(3)
_BUSCTL = ("/usr/bin/busctl", "/bin/busctl", "/run/current-system/sw/bin/busctl")
_SYSTEMD = "org.freedesktop.systemd1"
_CALL = (
    *(_SYSTEMD, "/org/freedesktop/systemd1", f"{_SYSTEMD}.Manager", "StartTransientUnit"),
    "ssa(sv)a(sa(sv))",
)
_NAME = re.compile(r"/(agentd-[0-9]+-[0-9a-f]+\.scope)(?=/|$)")
_CALL_SECONDS = 10.0
_ENVIRONMENT = {"LANG": "C.UTF-8"}
_MOVE_SECONDS = 5.0
_POLL_SECONDS = 0.001
_UNITS = (".service", ".scope")
# What bounds a group, and what there is where nothing was set. pids.max is set by default.
_BOUNDS = {
    "memory.max": ("", "max"),
    "memory.high": ("", "max"),
    "cpu.max": ("", "max", "max 100000"),
    "cpuset.cpus": ("",),
}


def current(membership_text: str | None = None) -> str:
    """Returns the name of the scope of ours that this process is in; empty for none."""
    match = _NAME.search(_own(membership_text))
    return "" if match is None else match[1]


def enter() -> str:
    """Move this process, with all its threads and none of its children, into a scope of its own.

    Empty once it is there; else why it stays where it is. Never raises for what systemd does.
    """
    before = _own()
    if not before or not os.path.isdir(_BOOTED):
        return "systemd does not run this machine, or version 2 of cgroups is not mounted"
    bus, why = _bus(os.environ)
    why = why or _kept(before)
    program = next((path for path in _BUSCTL if os.access(path, os.X_OK)), "")
    if not why and not program:
        why = "systemd's busctl is not installed"
    why = why or _ask(program, bus)
    if why:
        return why
    deadline = time.monotonic() + _MOVE_SECONDS
    while not current():
        if time.monotonic() >= deadline:
            return f"systemd did not move it into its scope within {_MOVE_SECONDS:g} s"
        time.sleep(_POLL_SECONDS)
    return ""


def _bus(environ: Mapping[str, str]) -> tuple[str, str]:
    """The socket of the user's D-Bus, or why there is none."""
    usual = f"/run/user/{os.geteuid()}"
    folders = [environ.get("XDG_RUNTIME_DIR") or usual, usual]  # su and cron set none
    running = [folder for folder in folders if os.path.exists(f"{folder}/systemd/private")]
    if not running:
        return "", "no systemd of this user's runs (loginctl enable-linger USER starts one)"
    for folder in running:
        if os.path.exists(f"{folder}/bus"):
            return f"{folder}/bus", ""
    return "", f"{running[0]}/bus, this user's D-Bus, is absent (apt install dbus-user-session)"


def _kept(own: str) -> str:
    """Return why this process must stay in its cgroup: a limit holds it there, or its unit needs
    it."""
    unit = next((part for part in reversed(own.split("/")) if part.endswith(_UNITS)), "")
    # A service ends, or is lost to its manager, when its first process leaves.
    if unit.endswith(".service") and _own(_membership(os.getppid())) != own:
        return f"it is the first process of {unit} (set Delegate=yes in that unit)"
    for directory in _left_by(own):
        for name, unset in _BOUNDS.items():
            value = files.read(f"{_MOUNT}{directory}", name).strip()
            if value not in unset:
                return f"the one that it would leave, {directory}, has a limit ({name} is {value})"
    return ""


def _left_by(own: str) -> Iterator[str]:
    """The groups that no longer hold a process once it is in a scope of its user's manager."""
    slice_ = f"/user.slice/user-{os.geteuid()}.slice"
    while own not in ("", "/", slice_):
        yield own
        own = os.path.dirname(own)


def _ask(program: str, bus: str) -> str:
    """Return what systemd has against it."""
    from agentd.linux import programs  # late: only who is in no scope yet needs it

    name = f"agentd-{os.getpid()}-{os.urandom(4).hex()}.scope"
    properties = [
        *("Description", "s", "limits of agentd's sandboxes"),
        *("Delegate", "b", "true"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("PIDs", "au", "1", str(os.getpid())),
    ]
    argv = [program, f"--address=unix:path={bus}", "--quiet", "call", *_CALL, name, "fail"]
    try:
        answer = programs.ask([*argv, "4", *properties, "0"], _CALL_SECONDS, env=_ENVIRONMENT)
    except TimeoutError:
        return f"this user's systemd gave no answer within {_CALL_SECONDS:g} s"
    except OSError as error:
        return f"{program} cannot be run, {error.strerror}"
    said = " ".join(answer.err.split()).removeprefix("Call failed: ").replace(": ", ", ")
    return f"this user's systemd refuses a scope, {said}" if answer.code else ""


def _own(membership_text: str | None = None) -> str:
    """The path of the group in version 2's tree; empty where it is in none."""
    for line in (membership_text or _membership("self")).splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""


def _membership(pid: int | str) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:  # it ended, or is another user's
        return "\n"
