"""A program read back says what it is: its text alone gives the same bytes again."""

import re
import struct

import pytest
from tests.unit.linux.seccomp import test_filter

from agentd.linux.seccomp import PROFILES, bpf, build
from agentd.linux.seccomp.disassembler import disassemble
from agentd.linux.seccomp.tables import MACHINES

CASES = test_filter.CASES


def assemble(line: int, text: str) -> bytes:
    """The instruction that a line's text tells of."""
    words = {"sys_number": 0, "arch": 4}
    if found := re.fullmatch(r"A = args\[(\d)\]", text):
        return struct.pack("=HBBI", bpf.LD_W_ABS, 0, 0, 16 + 8 * int(found[1]))
    if found := re.fullmatch(r"A = (\w+)", text):
        return struct.pack("=HBBI", bpf.LD_W_ABS, 0, 0, words[found[1]])
    if found := re.fullmatch(r"A &= (\w+)", text):
        return struct.pack("=HBBI", bpf.ALU_AND_K, 0, 0, int(found[1], 0))
    if found := re.fullmatch(r"goto (\d+)", text):
        return struct.pack("=HBBI", bpf.JMP_JA, 0, 0, int(found[1]) - line - 1)
    if found := re.fullmatch(r"if \(A (==|>=) (\w+).*\) goto (\d+) else goto (\d+)", text):
        code = bpf.JMP_JEQ_K if found[1] == "==" else bpf.JMP_JGE_K
        then, otherwise = int(found[3]) - line - 1, int(found[4]) - line - 1
        return struct.pack("=HBBI", code, then, otherwise, int(found[2], 0))
    found = re.fullmatch(r"return (\w+)(?:\((\w+)\))?", text)
    assert found, text
    actions = {"KILL_PROCESS": 0x80000000, "ALLOW": 0x7FFF0000, "ERRNO": 0x00050000}
    actions["USER_NOTIF"] = 0x7FC00000
    import errno

    value = actions[found[1]] | (getattr(errno, found[2]) if found[2] else 0)
    return struct.pack("=HBBI", bpf.RET_K, 0, 0, value)


@pytest.mark.parametrize(("machine", "profile", "inet"), CASES)
def test_the_text_is_the_program(machine: str, profile: str, inet: bool) -> None:
    program = build(profile, machine, inet=inet)
    lines = disassemble(program, machine)
    assert b"".join(assemble(line.line, line.text) for line in lines) == program
    assert [line.line for line in lines] == list(range(len(program) // 8))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", PROFILES)
def test_it_begins_with_the_architecture(machine: str, profile: str) -> None:
    first, second, third, fourth, *_ = disassemble(build(profile, machine), machine)
    assert str(first) == "0000: 0x20 0x00 0x00 0x00000004  A = arch"
    assert machine in second.text
    assert (third.text, fourth.text) == ("return KILL_PROCESS", "A = sys_number")


def test_a_number_has_its_name_and_an_argument_has_none() -> None:
    text = "\n".join(line.text for line in disassemble(build("sandbox", "x86_64"), "x86_64"))
    assert "101 ptrace" in text
    assert re.search(r"A == 0x541c\)", text)  # TIOCLINUX, of ioctl


@pytest.mark.parametrize("program", [b"", b"1234567", struct.pack("=HBBI", 0x61, 0, 0, 0)])
def test_what_is_no_program_is_refused(program: bytes) -> None:
    with pytest.raises(bpf.AssemblyError):
        disassemble(program, "x86_64")
