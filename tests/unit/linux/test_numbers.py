"""Numbers of the kernel's ABI, ours and those of its own headers, for both machines.

A program of nothing but the headers' words is compiled, with the ``asm`` folder of each machine,
and says what they come to: both are 64-bit and little-endian, so that sizes are the same.
"""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.guest import questions
from agentd.linux import abi, filtering
from agentd.linux.seccomp import bpf, filter, process_rules, rules
from agentd.linux.seccomp import socket_rules as sockets
from agentd.linux.seccomp import trace_rules as trace
from agentd.linux.seccomp.tables import MACHINES

HEADERS = (
    "audit bpf_common btrfs fcntl fs fscrypt fsverity if in in6 ioprio landlock memfd mman mount "
    "netlink personality pidfd prctl ptrace resource sched seccomp shm sockios stat tcp udp"
)
ASM = {"x86_64": "/usr/lib/linux/uapi/x86", "aarch64": "/usr/lib/linux/uapi/arm64"}
# Of the C library, or newer than many a header.
NOT_THERE = {"MNT_DETACH", "LANDLOCK_RESTRICT_SELF_LOG_SAME_EXEC_OFF"}
NOT_THERE |= {"LANDLOCK_RESTRICT_SELF_LOG_SUBDOMAINS_OFF"}
IF_THERE = {"F_SETDELEG", "PIDFD_GET_INFO", "PTRACE_OLDSETOPTIONS"}
BEGINNING = "int printf(const char *, ...);"
_NAMES = (
    (
        rules,
        "_TIOCSTI _TIOCLINUX _TIOCSETD _PER_LINUX _UNAME26 _PR_SET_MM _MAP_HUGETLB _MFD_HUGETLB",
    ),
    (rules, "_SHM_HUGETLB _PRIO_USER _IOPRIO_WHO_USER _F_SETLEASE _F_NOTIFY _F_SETPIPE_SZ"),
    (rules, "_F_SETDELEG _SOL_SOCKET _TCP_ULP _UDP_ENCAP _SECCOMP_FILTER_FLAG_NEW_LISTENER"),
    (rules, "_IPPROTO_IPV6 _IPV6_FLOWLABEL_MGR"),
    (sockets, "_NETLINK_ROUTE"),
    (trace, "_PTRACE_SETOPTIONS _PTRACE_SEIZE _PTRACE_O_TRACEEXIT _PTRACE_OLDSETOPTIONS"),
    (
        filtering,
        "SECCOMP_SET_MODE_FILTER SECCOMP_FILTER_FLAG_TSYNC SECCOMP_FILTER_FLAG_NEW_LISTENER",
    ),
)
_LISTS = (
    (rules._SO_ATTACH, ("SO_ATTACH_FILTER SO_ATTACH_BPF SO_ATTACH_REUSEPORT_CBPF "
                       "SO_ATTACH_REUSEPORT_EBPF")),
    (rules._BRIDGES, "SIOCGIFBR SIOCSIFBR SIOCBRADDBR SIOCBRDELBR"),
    (rules._VLANS, "SIOCGIFVLAN SIOCSIFVLAN"),
    (rules._FSCRYPT_KEYS, ("FS_IOC_ADD_ENCRYPTION_KEY FS_IOC_REMOVE_ENCRYPTION_KEY "
                          "FS_IOC_REMOVE_ENCRYPTION_KEY_ALL_USERS")),
    (process_rules._OWNER_IOCTLS, ("FS_IOC_SETFLAGS FS_IOC_SETVERSION FS_IOC_FSSETXATTR "
     "FS_IOC_SET_ENCRYPTION_POLICY FS_IOC_ENABLE_VERITY BTRFS_IOC_SNAP_CREATE "
     "BTRFS_IOC_SUBVOL_CREATE BTRFS_IOC_SNAP_DESTROY BTRFS_IOC_SNAP_CREATE_V2 "
     "BTRFS_IOC_SUBVOL_CREATE_V2 BTRFS_IOC_SUBVOL_SETFLAGS BTRFS_IOC_SET_RECEIVED_SUBVOL "
     "BTRFS_IOC_SNAP_DESTROY_V2")),
)  # fmt: skip
_WORDS = {
    "CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID"
    " | CLONE_NEWNET": rules._CLONE_NEW,
    "SECCOMP_RET_ALLOW": filter.RET_ALLOW,
    "SECCOMP_RET_ERRNO": filter.RET_ERRNO,
    "SECCOMP_RET_KILL_PROCESS": filter.RET_KILL_PROCESS,
    "SECCOMP_RET_USER_NOTIF": filter.RET_USER_NOTIF,
    "AUDIT_ARCH_X86_64": filter._AUDIT_ARCH["x86_64"],
    "AUDIT_ARCH_AARCH64": filter._AUDIT_ARCH["aarch64"],
    "__builtin_offsetof(struct seccomp_data, nr)": filter._NR,
    "__builtin_offsetof(struct seccomp_data, arch)": filter._ARCH,
    "__builtin_offsetof(struct seccomp_data, args)": filter._ARGS,
    "BPF_LD | BPF_W | BPF_ABS": bpf.LD_W_ABS,
    "BPF_ALU | BPF_AND | BPF_K": bpf.ALU_AND_K,
    "BPF_JMP | BPF_JA": bpf.JMP_JA,
    "BPF_JMP | BPF_JEQ | BPF_K": bpf.JMP_JEQ_K,
    "BPF_JMP | BPF_JGE | BPF_K": bpf.JMP_JGE_K,
    "BPF_RET | BPF_K": bpf.RET_K,
    "BPF_MAXINSNS": bpf.MAX_INSTRUCTIONS,
    "SECCOMP_IOCTL_NOTIF_RECV": questions._RECEIVE,
    "SECCOMP_IOCTL_NOTIF_SEND": questions._SEND,
    "SECCOMP_USER_NOTIF_FLAG_CONTINUE": questions._CONTINUE,
    "sizeof(struct seccomp_notif)": questions._ASKED.size,
    "sizeof(struct seccomp_notif_resp)": questions._ANSWER.size,
    "__builtin_offsetof(struct seccomp_notif, pid)": struct.calcsize("=Q"),
    "__builtin_offsetof(struct seccomp_notif, data.args)": struct.calcsize("=QI4xi4xQ"),
}


def _ours() -> Iterator[tuple[str, int]]:
    """The headers' words, and what we take them for."""
    for module, names in _NAMES:
        for name in names.split():
            yield name.lstrip("_"), getattr(module, name)
    for values, names in _LISTS:
        yield from zip(names.split(), values, strict=True)
    yield from _WORDS.items()
    for name, value in vars(abi).items():
        if name.isupper() and isinstance(value, int) and name not in NOT_THERE:
            yield name, value
    yield "PIDFD_GET_INFO & 0xffff", process_rules._PIDFD_GET_INFO


def _program(words: list[str]) -> str:
    lines = [
        BEGINNING,
        *(f"#include <linux/{name}.h>" for name in HEADERS.split()),
        "#include <asm/ioctls.h>",
    ]
    lines += ["#include <asm/socket.h>", "int main(void) {"]
    for word in words:
        line = f'printf("%llu\\n", (unsigned long long)(unsigned)({word}));'
        if "<<" in word or word in ("CLONE_INTO_CGROUP", "AT_FDCWD"):
            line = f'printf("%llu\\n", (unsigned long long)({word}));'
        first = word.split()[0]
        if first in IF_THERE:
            line = f'\n#ifdef {first}\n{line}\n#else\nprintf("absent\\n");\n#endif'
        lines.append(line)
    return "\n".join([*lines, "return 0; }"])


@pytest.mark.parametrize("machine", MACHINES)
def test_they_are_the_headers(machine: str, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: install gcc")
    if not Path(ASM[machine], "asm").is_dir():
        pytest.skip(f"no headers for {machine}: install linux-libc-dev of Debian 13")
    ours = dict(_ours())
    assert len(ours) > 100
    source, program = tmp_path / "numbers.c", tmp_path / "numbers"
    source.write_text(_program(list(ours)))
    argv = [compiler, "-w", "-isystem", ASM[machine]]
    subprocess.run([*argv, str(source), "-o", str(program)], check=True, timeout=60)
    said = subprocess.run([program], capture_output=True, text=True, check=True, timeout=120).stdout
    theirs = dict(zip(ours, said.splitlines(), strict=True))
    wrong = {
        word: (value, theirs[word])
        for word, value in ours.items()
        if theirs[word] != "absent" and int(theirs[word]) != value & (2**64 - 1)
    }
    assert not wrong
