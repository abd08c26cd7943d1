"""Whether KVM really runs a guest here: found out by running one, not by looking for /dev/kvm.

A device that opens proves little: nested or para-virtualised KVM may emulate a guest's kernel mode
and give up at the first SSE instruction. So a few instructions of what every kernel does are run,
in a child with a deadline, for KVM_RUN may never come back. Numbers and structures are those of
<linux/kvm.h> and <asm/kvm.h>; Documentation/virt/kvm/api.rst says how they are used.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import struct
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from agentd.linux import abi, kvm_guest
from agentd.linux.waiting import is_ready

DEVICE = "/dev/kvm"
_SECONDS = 5.0
_REAP_SECONDS = 2.0
_MAX_ANSWER = 4096
_API_VERSION = 12

_GET_API_VERSION = 0xAE00
_CREATE_VM = 0xAE01
_GET_VCPU_MMAP_SIZE = 0xAE04
_GET_SUPPORTED_CPUID = 0xC008AE05
_CREATE_VCPU = 0xAE41
_SET_USER_MEMORY_REGION = 0x4020AE46
_SET_TSS_ADDR = 0xAE47
_RUN = 0xAE80
_SET_REGS = 0x4090AE82
_GET_SREGS = 0x8138AE83
_SET_SREGS = 0x4138AE84
_SET_CPUID2 = 0x4008AE90

_TSS_ADDRESS = 0x10000000  # three pages below 4 GiB that no memory slot covers
_CPUID_ENTRIES = 256

# struct kvm_run
_EXIT_REASON = 8
_EXIT = 32
_EXIT_IO, _EXIT_HLT, _EXIT_SHUTDOWN, _EXIT_FAIL_ENTRY, _EXIT_INTERNAL = 2, 5, 8, 9, 17
_IO_DATA_OFFSET = _EXIT + 8
_EMULATION = 1  # KVM_INTERNAL_ERROR_EMULATION

_NESTED = "turn nested virtualisation on in the host of this machine, or use a bare-metal one"
Ioctl = Callable[..., Any]


@dataclass(frozen=True)
class KvmReport:
    """``what`` stands in the way and ``fix`` is the way out, both empty when usable."""

    usable: bool
    what: str = ""
    fix: str = ""
    detail: str = ""  # what was tried and came out


def probe(path: str = DEVICE, seconds: float = _SECONDS) -> KvmReport:
    """Run a guest of a few instructions; takes 0.1 s, ``seconds`` where KVM hangs."""
    if not os.path.exists(path):
        return KvmReport(False, f"{path} does not exist", _absent_fix())
    if not os.access(path, os.R_OK | os.W_OK):
        return KvmReport(False, f"uid {os.geteuid()} may not open {path}", _group_fix(path))
    return in_child(lambda: attempt(path), seconds)


def attempt(path: str, ioctl: Ioctl = fcntl.ioctl, machine: str = abi.MACHINE) -> KvmReport:
    """Tries it in this process, which it may hang."""
    step = f"open {path}"
    opened: list[int] = []

    def do(what: str, fd: int, *args: object) -> Any:
        nonlocal step
        step = what
        return ioctl(fd, *args)

    try:
        kvm = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        opened.append(kvm)
        version = do("ask for the API version", kvm, _GET_API_VERSION, 0)
        if version != _API_VERSION:
            what = f"{path} speaks API version {version}, not {_API_VERSION}"
            return KvmReport(False, what, "boot Linux 5.10 or newer")
        opened.append(do("create a VM", kvm, _CREATE_VM, 0))
        if machine != "x86_64":
            opened.append(do("create a vCPU", opened[-1], _CREATE_VCPU, 0))
            return KvmReport(
                True, detail=f"a VM and a vCPU can be made; {machine} code was not run"
            )
        return _run(do, kvm, opened)
    except OSError as error:
        return _refused(path, step, error)
    finally:
        for fd in reversed(opened):
            os.close(fd)


def _run(do: Ioctl, kvm: int, opened: list[int]) -> KvmReport:
    """Long mode, as a kernel has it, and the steps of ``kvm_guest`` one after the other."""
    vm = opened[-1]
    size = do("ask for the size of a vCPU's page", kvm, _GET_VCPU_MMAP_SIZE, 0)
    do("place the task segment", vm, _SET_TSS_ADDR, _TSS_ADDRESS)
    with mmap.mmap(-1, kvm_guest.MEMORY) as memory:
        kvm_guest.fill(memory)
        slot = struct.pack("=IIQQQ", 0, 0, 0, kvm_guest.MEMORY, _address(memory))
        do("give it memory", vm, _SET_USER_MEMORY_REGION, slot)
        vcpu = do("create a vCPU", vm, _CREATE_VCPU, 0)
        opened.append(vcpu)
        cpuid = bytearray(8 + _CPUID_ENTRIES * 40)
        struct.pack_into("=I", cpuid, 0, _CPUID_ENTRIES)
        do("ask for the CPU's features", kvm, _GET_SUPPORTED_CPUID, cpuid)
        do("set the CPU's features", vcpu, _SET_CPUID2, cpuid)
        special = bytearray(kvm_guest.SREGS_BYTES)
        do("read special registers", vcpu, _GET_SREGS, special)
        kvm_guest.long_mode(special)
        do("enter long mode", vcpu, _SET_SREGS, special)
        do("set registers", vcpu, _SET_REGS, kvm_guest.registers())
        with mmap.mmap(vcpu, size) as page:
            return _follow(do, vcpu, page)


def _address(memory: mmap.mmap) -> int:
    # Not kept: a mapping with an exported buffer cannot be closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _follow(do: Ioctl, vcpu: int, page: mmap.mmap) -> KvmReport:
    for number, name in kvm_guest.MARKS:
        do(f"run a guest that {name}", vcpu, _RUN, 0)
        (reason,) = struct.unpack_from("=I", page, _EXIT_REASON)
        if reason != _EXIT_IO or page[struct.unpack_from("=Q", page, _IO_DATA_OFFSET)[0]] != number:
            return _stopped(name, reason, page)
    do("halt a guest", vcpu, _RUN, 0)
    (reason,) = struct.unpack_from("=I", page, _EXIT_REASON)
    if reason != _EXIT_HLT:
        return _stopped("halts", reason, page)
    return KvmReport(True, detail="ran a guest in long mode until it halted")


def _stopped(name: str, reason: int, page: mmap.mmap) -> KvmReport:
    words = {
        _EXIT_IO: "another answer than the one expected",
        _EXIT_HLT: "it halted",
        _EXIT_SHUTDOWN: "a triple fault",
        _EXIT_FAIL_ENTRY: "the CPU refused to enter it, reason "
        f"{struct.unpack_from('=Q', page, _EXIT)[0]:#x}",
        _EXIT_INTERNAL: _internal(page),
    }.get(reason, "no known meaning")
    return KvmReport(
        False,
        f"KVM cannot run a guest that {name}: exit reason {reason}, {words}",
        f"this KVM runs no ordinary kernel: {_NESTED}",
    )


def _internal(page: mmap.mmap) -> str:
    """KVM_EXIT_INTERNAL_ERROR; struct emulation_failure tells which instruction it was."""
    (kind,) = struct.unpack_from("=I", page, _EXIT)
    if kind != _EMULATION:
        return f"internal error {kind}"
    count = min(page[_EXIT + 16], 15)
    code = page[_EXIT + 17 : _EXIT + 17 + count][:4]
    return f"KVM emulates instead of running, and does not know the code {code.hex(' ')}"


def _refused(path: str, step: str, error: OSError) -> KvmReport:
    name = os.strerror(error.errno or 0).lower()
    fixes = {
        errno.EBUSY: "end the other hypervisor that holds the CPU's virtualisation, or reboot",
        errno.EACCES: _group_fix(path),
        errno.EPERM: _group_fix(path),
        errno.ENOTTY: f"{path} is not KVM's device: modprobe kvm",
        errno.ENODEV: _absent_fix(),
    }
    return KvmReport(False, f"KVM failed to {step}: {name}", fixes.get(error.errno or 0, _NESTED))


def _absent_fix() -> str:
    """By what the CPU says of itself."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            words = set(file.read().split())
    except OSError:
        words = set()
    for flag, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd")):
        if flag in words:
            return f"modprobe {module}"
    return f"this CPU shows no virtualisation: turn it on in the firmware, or {_NESTED}"


def _group_fix(path: str) -> str:
    return f"usermod -aG kvm USER, and log in again; or setfacl -m u:USER:rw {path}"


# --- the child ---


def in_child(work: Callable[[], KvmReport], seconds: float) -> KvmReport:
    """Does ``work()`` in a forked child, which is killed after ``seconds``."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        # 3.12 warns of threads at fork; this child makes system calls and exits.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _work(work, write_end)
    os.close(write_end)
    try:
        data = _answer(read_end, seconds)
    finally:
        os.close(read_end)
        _end(pid)
    if data:
        return KvmReport(**json.loads(data))
    what = f"KVM ran a guest for {seconds:g} s without an end" if data is None else "the probe died"
    return KvmReport(False, what, f"this KVM runs no ordinary kernel: {_NESTED}")


def _work(work: Callable[[], KvmReport], write_end: int) -> None:
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.write(write_end, json.dumps(asdict(work())).encode()[:_MAX_ANSWER])
    except Exception as error:  # it must not go on as a second copy of the caller
        os.write(write_end, json.dumps(asdict(_broken(error))).encode()[:_MAX_ANSWER])
    finally:
        os._exit(0)


def _broken(error: Exception) -> KvmReport:
    return KvmReport(False, f"the probe failed: {error}"[:1000], "report this as a fault of agentd")


def _answer(fd: int, seconds: float) -> bytes | None:
    """None at the deadline, empty at EOF; an answer is one write, so it is whole or not there."""
    return os.read(fd, _MAX_ANSWER) if is_ready(fd, seconds) else None


def _end(pid: int) -> None:
    """One that even SIGKILL cannot end is left to the kernel."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if is_ready(pidfd, _REAP_SECONDS):
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
