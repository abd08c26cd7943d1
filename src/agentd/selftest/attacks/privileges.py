"""Gaining privileges, and the namespaces that would give them."""

import contextlib
import os
import stat
from dataclasses import replace
from functools import partial

from agentd.linux import caps
from agentd.model.isolation import IsolationLevel
from agentd.selftest.attack import (
    FILTERED,
    Attack,
    AttackOutcome,
    Judged,
    by,
    refused,
    shown,
    unfinished,
)
from agentd.selftest.planted import Planted, no_program
from agentd.selftest.report import Verdict

_LEFT = ("by-chmod", "by-open")
# Root has some over what is the sandbox's: those are given, and not gained.
_HOLD = f"""
roots = {sum(1 << number for number in caps.OF_ROOT)} if os.getuid() == 0 else 0
header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
data = ctypes.create_string_buffer(24)
call("capget", header, data)
low, high = struct.unpack("=3I", data.raw[:12]), struct.unpack("=3I", data.raw[12:24])
held = [(a | b << 32) & ~roots for a, b in zip(low, high)]
said("held", "none" if not any(held) else " ".join(map(hex, held)))
ambient = [n for n in range(38) if call("prctl", 47, 1, n, 0, 0) == 1]
said("ambient", "some" if ambient else "none")
"""
_GAIN = """
header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
said("capset", call("capset", header, struct.pack("=6I", *[0xFFFFFFFF] * 6)))
other = 0 if os.getuid() else 1 << 30  # root may become whom its namespace has
if os.getuid():
    said("securebits", call("prctl", 28, 0, 0, 0, 0))
said("setuid", in_child(lambda: call("setuid", other)))
said("setgid", in_child(lambda: call("setgid", other)))
said("uid", os.getuid())
"""
_SETUID = """
import subprocess
said("promised", call("prctl", 39, 0, 0, 0, 0))
paths = [path for path in ("/programs/id", sys.argv[1]) if os.path.exists(path)]
ran = subprocess.run([paths[0], "-u"], capture_output=True, text=True) if paths else None
said("euid", ran.stdout.strip() if ran else "no program")
said("uid", os.getuid())
"""
_PROMISE = 'said("no_new_privs", call("prctl", 39, 0, 0, 0, 0))'
# Each in a child that ends with what it changed.
_UNSHARE = """
USER = 0x10000000
for name, flag in (("user", 0), ("mount", 0x00020000), ("pid", 0x20000000), ("net", 0x40000000)):
    said(f"unshare {name}", in_child(lambda: call("unshare", USER | flag)))
def cloned(got):
    if got == 0:
        os._exit(0)
    return got if isinstance(got, str) else os.waitpid(got, 0) and "done"
said("clone", cloned(call("clone", USER | signal.SIGCHLD, 0, 0, 0, 0)))
said("clone, high bits", cloned(call("clone", 1 << 32 | USER | signal.SIGCHLD, 0, 0, 0, 0)))
args = struct.pack("=11Q", USER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
said("clone3", cloned(call("clone3", args, len(args))))
"""
# A descriptor that cannot be: EBADF shows that the kernel looked at it.
_SETNS = """
said("setns", call("setns", -1, 0))
for name, flag in (("user", 0x10000000), ("mnt", 0x00020000), ("net", 0x40000000)):
    fd = tried(os.open, f"/proc/{os.getppid()}/ns/{name}", os.O_RDONLY)
    said(name, call("setns", fd, flag) if isinstance(fd, int) else fd)
"""


def _judge_gain(seen: AttackOutcome) -> Judged:
    """gVisor's root has every id of gVisor's, of which none is anybody's outside: none to gain."""
    said = dict(seen.said)
    kernel = seen.result.enforcement.get("userspace_kernel")
    if said.pop("uid", "") == "0" and kernel is not None and kernel.enforced:
        said = {name: got for name, got in said.items() if name not in ("setuid", "setgid")}
    # EINVAL: a uid that the namespace does not have
    return refused("EINVAL")(replace(seen, said=said))


def _judge_setuid(seen: AttackOutcome) -> Judged:
    early = unfinished(seen)
    if early is not None:
        return early
    if seen.said["euid"] == "no program":
        return Verdict.UNDECIDED, "the set-uid program is not to be seen inside"
    if seen.said["euid"] != seen.said["uid"]:
        return Verdict.THROUGH, f"uid {seen.said['uid']} ran as uid {seen.said['euid']}"
    return Verdict.STOPPED, f"it ran as uid {seen.said['uid']}, as its caller"


def _judge_promise(seen: AttackOutcome) -> Judged:
    early = unfinished(seen)
    if early is not None:
        return early
    held = seen.said["no_new_privs"] == "1"
    return (Verdict.STOPPED if held else Verdict.THROUGH), shown(seen.said)


_LEAVE = f"""
for number, name in enumerate({_LEFT!r}):
    tried(os.unlink, name)
    if number:
        fd = tried(os.open, name, os.O_CREAT | os.O_WRONLY, 0o4755)
        said("open", "made" if isinstance(fd, int) else fd)
    else:
        open(name, "w").close()
        said("chmod", tried(os.chmod, name, 0o4755) or "done")
"""


def _judge_left(seen: AttackOutcome) -> Judged:
    """Told by what lies on the host."""
    if (early := unfinished(seen)) is not None:
        return early
    for name in _LEFT:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(f"{seen.planted.shared}/{name}").st_mode & stat.S_ISUID:
                return Verdict.THROUGH, "a set-uid program of its own lies on the host"
    return Verdict.STOPPED, shown(seen.said)


def _program(planted: Planted) -> tuple[str, ...]:
    return (planted.program or "",)


_CAPABILITIES = by("capabilities user", "capabilities", "")
_attack = partial(Attack, otherwise="what is gained there is the machine's own")
ATTACKS = (
    _attack("hold a capability", _HOLD, _CAPABILITIES, refused("none"), root=True),
    _attack("gain capabilities or another uid", _GAIN, _CAPABILITIES, _judge_gain, root=True),
    _attack(
        "exec with new privileges", _PROMISE, by("no_new_privs", "no_new_privs", ""), _judge_promise
    ),
    _attack(
        "gain another uid by a set-uid program",
        _SETUID,
        by("no_new_privs", "no_new_privs user_namespace mount_namespace", ""),
        _judge_setuid,
        _program,
        absent=no_program,
        programs=True,
    ),
    _attack(
        "leave a set-uid program in a mounted folder",
        _LEAVE,
        by("seccomp", "seccomp", "") | {IsolationLevel.USERSPACE_KERNEL: ("set_id",)},
        _judge_left,
        shared=True,
    ),
    _attack("make a user namespace, which has every capability", _UNSHARE, FILTERED),
    _attack("enter another namespace", _SETNS, FILTERED),
)
