"""A small assembler for classic BPF, as seccomp(2) takes it.

A program is a list of `Item`. Jumps name labels and only go forward; the kernel refuses any other.
The one output is an array of ``struct sock_filter`` (8 bytes each: u16 code, u8 jt, u8 jf, u32 k).
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS, linux/bpf_common.h
_WORD = 0xFFFFFFFF
_NEAR = 255  # jt and jf are one byte

# linux/bpf_common.h: class | size or operation | mode or source
LD_W_ABS = 0x20
ALU_AND_K = 0x54
JMP_JA = 0x05
JMP_JEQ_K = 0x15
JMP_JGE_K = 0x35
RET_K = 0x06


class AssemblyError(ValueError):
    """The program cannot be encoded; the message names the label or the bound."""


class Label(NamedTuple):
    name: str


class BpfStatement(NamedTuple):
    code: int
    k: int


class Goto(NamedTuple):
    label: str


class Branch(NamedTuple):
    """Compare the accumulator with ``k``. A label of None is the next item."""

    code: int
    k: int
    then: str | None
    otherwise: str | None


Item = Label | BpfStatement | Goto | Branch


def load(offset: int) -> BpfStatement:
    """Load the 32-bit word at ``offset`` of ``struct seccomp_data``."""
    return BpfStatement(LD_W_ABS, offset)


def mask(bits: int) -> BpfStatement:
    return BpfStatement(ALU_AND_K, bits)


def answer(action: int) -> BpfStatement:
    return BpfStatement(RET_K, action)


def equal(k: int, then: str | None, otherwise: str | None = None) -> Branch:
    return Branch(JMP_JEQ_K, k, then, otherwise)


def at_least(k: int, then: str | None, otherwise: str | None = None) -> Branch:
    """Compares unsigned."""
    return Branch(JMP_JGE_K, k, then, otherwise)


def assemble(items: Iterable[Item]) -> bytes:
    """Encode ``items``.

    Raises AssemblyError for a label that is unknown, doubled or behind its jump, for a value that
    is not 32 bits, for a program that can run off its end, and for more than MAX_INSTRUCTIONS.
    """
    writer = _BackwardWriter()
    for item in reversed(list(items)):
        writer.add(item)
    return writer.program()


class _BackwardWriter:
    """Writes from the last instruction to the first.

    Jumps only go forward, so every target is known when its jump is written, and one pass is
    enough even where a branch too far for its byte needs a long jump of its own behind it.
    A position is the number of instructions from it to the end.
    """

    def __init__(self) -> None:
        self._code: list[bytes] = []
        self._labels: dict[str, int] = {}

    def add(self, item: Item) -> None:
        match item:
            case Label():
                if item.name in self._labels:
                    raise AssemblyError(f"label {item.name!r} is defined twice; rename one")
                self._labels[item.name] = len(self._code)
            case BpfStatement():
                if item.code != RET_K:
                    self._must_not_be_last()
                self._emit(item.code, item.k)
            case Goto():
                self._goto(self._position(item.label))
            case Branch():
                self._branch(item)

    def program(self) -> bytes:
        if not self._code:
            raise AssemblyError("the program is empty; end it with an answer")
        return b"".join(reversed(self._code))

    def _branch(self, item: Branch) -> None:
        next_item = len(self._code)
        then = self._reach(item.then, next_item)
        otherwise = self._reach(item.otherwise, next_item)
        here = len(self._code)
        self._emit(item.code, item.k, here - then, here - otherwise)

    def _reach(self, label: str | None, next_item: int) -> int:
        """The position that stands for ``label`` within one byte of a branch written soon."""
        if label is None:
            self._must_not_be_last()
            return next_item
        position = self._position(label)
        # one less: the other arm may put its own long jump in between
        if len(self._code) - position <= _NEAR - 1:
            return position
        self._goto(position)
        return len(self._code)

    def _goto(self, position: int) -> None:
        self._emit(JMP_JA, len(self._code) - position)

    def _position(self, label: str) -> int:
        position = self._labels.get(label)
        if position is None:
            raise AssemblyError(f"label {label!r} does not follow its jump; define it further down")
        if position == 0:
            raise AssemblyError(f"label {label!r} is at the end; put an instruction after it")
        return position

    def _must_not_be_last(self) -> None:
        if not self._code:
            raise AssemblyError("the program runs off its end; end it with an answer")

    def _emit(self, code: int, k: int, jt: int = 0, jf: int = 0) -> None:
        if not 0 <= k <= _WORD:
            raise AssemblyError(f"{k:#x} is not a 32-bit value; mask it")
        if len(self._code) >= MAX_INSTRUCTIONS:
            raise AssemblyError(f"more than {MAX_INSTRUCTIONS} instructions; merge rules")
        self._code.append(struct.pack("=HBBI", code, jt, jf, k))
