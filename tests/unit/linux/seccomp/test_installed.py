"""The filter in this kernel: every denied call, foreign architectures, and programs that must run.

Each case runs in a process of its own, since a filter is for good.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from agentd.linux import abi
from agentd.linux.seccomp import PROFILES, explain
from agentd.linux.seccomp.rule import ASK, ArgumentMatch, Rule
from agentd.linux.seccomp.tables import MACHINES, numbers

pytestmark = pytest.mark.skipif(
    abi.MACHINE not in MACHINES,
    reason=f"no seccomp table for {abi.MACHINE}",
)
x86_64 = pytest.mark.skipif(abi.MACHINE != "x86_64", reason="int 0x80 and x32 are x86 only")

CONFINE = """
import ctypes, json, mmap, os, resource, sys
from agentd.linux import seccomp
from agentd.linux.kernel import KERNEL
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def confine(profile):
    if profile != "none":
        KERNEL.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
        seccomp.install(seccomp.build(profile))
def attempt(number, *args):
    try:
        KERNEL.syscall(number, *args)
    except OSError as error:
        return error.errno
    return 0
"""
CALLS = """
calls = json.load(sys.stdin)
confine(sys.argv[1])
print(json.dumps([attempt(number, *args) for number, args in calls]))
"""
INT80 = """
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000" "cd80" "c3"))  # mov eax, 20 (getpid); int 0x80; ret
getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
confine(sys.argv[1])
ok = getpid() == os.getpid()
sys.stdout.write("same" if ok else "other")
sys.stdout.flush()
os._exit(0)
"""
X32 = """
confine(sys.argv[1])
print(attempt(0x40000000 | 39))  # getpid
"""
THREAD = """
import threading
go, seen = threading.Event(), []
def wait():
    go.wait()
    seen.append(attempt(int(sys.argv[2]), 0))
before = threading.Thread(target=wait)
before.start()
confine(sys.argv[1])
go.set()
before.join()
print(*seen)
"""
NESTED = """
confine(sys.argv[1])
confine(sys.argv[1])
print("both")
"""
EXEC = """
confine(sys.argv[1])
os.execvp(sys.argv[2], sys.argv[2:])
"""
ORDINARY = """
import concurrent.futures, multiprocessing, os, socket, subprocess, tempfile
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert sum(pool.map(int, "1234")) == 10
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
a, b = socket.socketpair()
with a, b:
    a.sendall(b"x")
    assert b.recv(1) == b"x"
socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
with tempfile.TemporaryDirectory() as place:
    os.mkfifo(place + "/fifo")
    with open(place + "/file", "w") as file:
        file.write("x")
    os.rename(place + "/file", place + "/renamed")
os.sched_setaffinity(0, os.sched_getaffinity(0))
os.nice(0)
child = multiprocessing.get_context("fork").Process(target=int)
child.start()
child.join()
assert child.exitcode == 0
print("ordinary")
"""


def confined(body: str, *argv: str, send: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CONFINE + body, *argv],
        input=send,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,  # no controlling terminal, whatever a call would do to it
    )


def errnos(profile: str, calls: list[tuple[int, list[int]]]) -> list[int]:
    done = confined(CALLS, profile, send=json.dumps(calls))
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def meeting(match: ArgumentMatch) -> int:
    """An argument for which ``match`` holds."""
    candidates = (*match.values, match.values[0] + 1, 16, 40, match.mask & -match.mask, 1)
    return next(value for value in candidates if match.holds(value))


def denied(rules: tuple[Rule, ...]) -> list[tuple[str, int, list[int], int]]:
    """(name, number, arguments, errno): one attempt for each call of each rule."""
    table = numbers(abi.MACHINE)
    attempts = []
    for rule in rules:
        args = [0] * 6
        for match in rule.when:
            args[match.argument] = meeting(match)
        for name in rule.calls:
            if name in table:
                first = next(
                    r.code
                    for r in rules
                    if name in r.calls and all(m.holds(args[m.argument]) for m in r.when)
                )
                # who installs without listening answers nothing
                code = errno.ENOSYS if first == ASK else first
                attempts.append((name, table[name], args, code))
    return attempts


@pytest.mark.parametrize("profile", PROFILES)
def test_every_denied_call_gets_its_errno(profile: str) -> None:
    attempts = denied(PROFILES[profile])
    assert len(attempts) > len(explain(profile))
    got = errnos(profile, [(number, args) for _, number, args, _ in attempts])
    wanted = [(name, args, code) for name, _, args, code in attempts]
    assert [(n, a, code) for (n, _, a, _), code in zip(attempts, got, strict=True)] == wanted


# Harmless with every argument 0, and never EPERM for root without the filter.
CONTROL = (
    "mount umount2 chroot unshare setns ptrace process_vm_readv kcmp open_by_handle_at "
    "name_to_handle_at move_mount fsopen sethostname fchmodat fchownat utimensat"
)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root is not denied by the kernel itself")
def test_without_the_filter_the_same_calls_are_not_denied() -> None:
    calls = [(numbers(abi.MACHINE)[name], [0] * 6) for name in CONTROL.split()]
    assert errno.EPERM not in errnos("none", calls)
    assert set(errnos("process-same-uid", calls)) == {errno.EPERM}


@pytest.mark.parametrize("request_high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_tiocsti_does_not_pass_with_high_bits(request_high: int) -> None:
    number = numbers(abi.MACHINE)["ioctl"]
    calls = [(number, [0, request_high | 0x5412, 0])]
    assert errnos("none", calls) != [errno.EPERM]
    assert errnos("sandbox", calls) == [errno.EPERM]


def test_a_number_of_the_future_is_enosys() -> None:
    assert errnos("sandbox", [(472, [0] * 6), (1000, [0] * 6), (-1, [0] * 6)]) == [errno.ENOSYS] * 3


@x86_64
@pytest.mark.parametrize("profile", PROFILES)
def test_i386_calls_kill(profile: str) -> None:
    free = confined(INT80, "none")
    if free.returncode == -signal.SIGSEGV:
        pytest.skip("this kernel has no 32-bit entry: CONFIG_IA32_EMULATION is off")
    # without the filter the door is open (or answers ENOSYS, where booted with ia32_emulation=0)
    assert free.returncode == 0, free.stderr
    assert confined(INT80, profile).returncode == -signal.SIGSYS


@x86_64
@pytest.mark.parametrize("profile", PROFILES)
def test_x32_calls_kill(profile: str) -> None:
    assert confined(X32, "none").returncode == 0
    assert confined(X32, profile).returncode == -signal.SIGSYS


def test_a_thread_started_before_is_under_the_filter_too() -> None:
    number = str(numbers(abi.MACHINE)["unshare"])
    assert confined(THREAD, "none", number).stdout.split() == ["0"]
    assert confined(THREAD, "sandbox", number).stdout.split() == [str(errno.EPERM)]


def test_a_confined_program_may_confine_itself_further() -> None:
    assert confined(NESTED, "sandbox").stdout.split() == ["both"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give up root")
@pytest.mark.root
def test_an_ordinary_user_needs_no_new_privs() -> None:
    body = "os.setuid(65534)\nseccomp.install(seccomp.build('sandbox'))"
    done = confined(body)
    assert done.returncode == 1
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_ordinary_python_runs(profile: str) -> None:
    done = confined(EXEC, profile, sys.executable, "-W", "ignore", "-c", ORDINARY)
    assert (done.stdout, done.returncode) == ("ordinary\n", 0), done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_a_shell_pipeline_runs(profile: str) -> None:
    script = "seq 100 | sort -n | (tail -n 1; cat) && test -d / && echo $(id -u)"
    done = confined(EXEC, profile, "sh", "-c", script)
    assert done.stdout == f"100\n{os.geteuid()}\n", done.stderr


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_runs() -> None:
    done = confined(EXEC, "process-same-uid", "git", "--version")
    assert done.stdout.startswith("git version"), done.stderr
