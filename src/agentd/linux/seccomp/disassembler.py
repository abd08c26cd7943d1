"""Classic BPF read back: one line an instruction, in the words of seccomp(2).

``A`` is the accumulator; ``sys_number``, ``arch`` and ``args[n]`` are the members of ``struct
seccomp_data``, an argument by its low 32 bits.
"""

import errno
import struct
from typing import NamedTuple

from agentd.linux.seccomp import bpf
from agentd.linux.seccomp.tables import numbers

_NR, _ARCH, _ARGS = 0, 4, 16
_ACTION, _DATA = 0xFFFF0000, 0xFFFF
_ACTIONS = {
    0x80000000: "KILL_PROCESS",
    0x00000000: "KILL_THREAD",
    0x00030000: "TRAP",
    0x7FC00000: "USER_NOTIF",
    0x7FF00000: "TRACE",
    0x7FFC0000: "LOG",
    0x7FFF0000: "ALLOW",
}
_ERRNO = 0x00050000
_ARCHITECTURES = {0xC000003E: "x86_64", 0xC00000B7: "aarch64"}


class Instruction(NamedTuple):
    """``line`` counts from 0; ``code``, ``jt``, ``jf`` and ``k`` as in ``struct sock_filter``."""

    line: int
    code: int
    jt: int
    jf: int
    k: int
    text: str

    def __str__(self) -> str:
        raw = f"{self.code:#04x} {self.jt:#04x} {self.jf:#04x} {self.k:#010x}"
        return f"{self.line:04}: {raw}  {self.text}"


def disassemble(program: bytes, machine: str) -> list[Instruction]:
    """``machine`` is a ``uname -m``: whose names system call numbers get.

    Raises AssemblyError for what is no program of the assembler's instructions, LookupError for a
    machine without a table.
    """
    if not program or len(program) % 8:
        raise bpf.AssemblyError(f"{len(program)} bytes are no whole number of instructions")
    names = {number: name for name, number in numbers(machine).items()}
    found = []
    loaded = -1  # which word A holds: only forward jumps, and each check loads its own
    for line, (code, jt, jf, k) in enumerate(struct.iter_unpack("=HBBI", program)):
        if code == bpf.LD_W_ABS:
            loaded = k
        text = _text(line, (code, jt, jf, k), loaded, names)
        found.append(Instruction(line, code, jt, jf, k, text))
    return found


def _text(
    line: int, instruction: tuple[int, int, int, int], loaded: int, names: dict[int, str]
) -> str:
    code, jt, jf, k = instruction
    match code:
        case bpf.LD_W_ABS:
            return f"A = {_word(k)}"
        case bpf.ALU_AND_K:
            return f"A &= {k:#x}"
        case bpf.JMP_JA:
            return f"goto {line + 1 + k:04}"
        case bpf.JMP_JEQ_K | bpf.JMP_JGE_K:
            sign = "==" if code == bpf.JMP_JEQ_K else ">="
            ways = f"goto {line + 1 + jt:04} else goto {line + 1 + jf:04}"
            return f"if (A {sign} {_value(k, loaded, names)}) {ways}"
        case bpf.RET_K:
            return f"return {_action(k)}"
    raise bpf.AssemblyError(f"instruction {line} has the code {code:#x}, which none of ours has")


def _word(offset: int) -> str:
    known = {_NR: "sys_number", _ARCH: "arch"}
    argument, rest = divmod(offset - _ARGS, 8)
    if offset in known or rest or not 0 <= argument < 6:
        return known.get(offset, f"data[{offset}]")
    return f"args[{argument}]"


def _value(k: int, loaded: int, names: dict[int, str]) -> str:
    if loaded == _ARCH and k in _ARCHITECTURES:
        return f"{k:#x} {_ARCHITECTURES[k]}"
    if loaded == _NR:
        return f"{k} {names[k]}" if k in names else f"{k:#x}"
    return f"{k:#x}"


def _action(k: int) -> str:
    if k & _ACTION == _ERRNO:
        return f"ERRNO({errno.errorcode.get(k & _DATA, k & _DATA)})"
    return _ACTIONS.get(k & _ACTION, f"{k:#x}")
