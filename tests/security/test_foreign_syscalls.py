"""Threat: reaching system calls past the filter by another ABI: i386 (int 0x80), x32.

Their numbers mean other calls: i386's 101 is ioperm, x86_64's is ptrace. Control: seccomp checks
the architecture first and kills the process.
"""

import platform
import signal
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="i386 and x32 are ABIs of x86_64 kernels"
)

# mov eax, 20 (getpid of i386); int 0x80; ret
INT80 = """
import mmap
code = bytes.fromhex("b814000000cd80c3")
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(code)
where = ctypes.addressof(ctypes.c_char.from_buffer(page))
said("pid", ctypes.CFUNCTYPE(ctypes.c_int)(where)() == os.getpid())
"""
X32 = 'said("x32", call(0x40000000 | NR["getpid"]))'
# A whole i386 program: mov ebx, 42; mov eax, 1 (exit); int 0x80
ELF32 = """
text = bytes.fromhex("bb2a000000b801000000cd80")
base, at = 0x8048000, 52 + 32
head = b"\\x7fELF\\x01\\x01\\x01" + bytes(9)
head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + at, 52, 0, 0, 52, 32, 1, 0, 0, 0)
head += struct.pack("<IIIIIIII", 1, 0, base, base, at + len(text), at + len(text), 5, 4096)
# Born with its mode: chmod may be refused, where commands keep the caller's user.
fd = os.open("i386", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o755)
os.write(fd, head + text)
os.close(fd)
pid = os.posix_spawn("./i386", ["i386"], {})
said("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_int80_kills(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled).run(INT80).exit.signal == signal.SIGSYS


def test_x32_kills(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled).run(X32).exit.signal == signal.SIGSYS


def test_an_i386_program_dies_at_its_first_call(sandbox: Callable[..., Any], walled: str) -> None:
    assert sandbox(walled).attack(ELF32) == {"status": str(-signal.SIGSYS)}


def test_off_the_kernel_answers(sandbox: Callable[..., Any], walled: str) -> None:
    """Pins that the attacks are real: on a kernel with the i386 ABI they do what they say."""
    box = sandbox(walled, without={"seccomp"})
    ended = box.run(INT80).exit
    if ended.signal == signal.SIGSEGV:
        pytest.skip("this kernel has no i386 ABI (CONFIG_IA32_EMULATION)")
    assert box.attack(INT80) == {"pid": "True"}
    assert box.attack(ELF32) == {"status": "42"}
    answer = box.attack(X32)["x32"]  # the pid, or ENOSYS without CONFIG_X86_X32_ABI
    assert answer == "ENOSYS" or answer.isdigit()
