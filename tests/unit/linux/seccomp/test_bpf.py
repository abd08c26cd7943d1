"""The assembler: encoding, labels, long jumps, and what it must refuse."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.linux.seccomp import bpf


def run(program: bytes, word: int) -> int:
    """Interpret a program whose only load is ``word``."""
    code = list(struct.iter_unpack("=HBBI", program))
    position, accumulator = 0, 0
    while True:
        operation, jt, jf, k = code[position]
        position += 1
        if operation == bpf.RET_K:
            return k
        if operation == bpf.LD_W_ABS:
            accumulator = word
        elif operation == bpf.ALU_AND_K:
            accumulator &= k
        elif operation == bpf.JMP_JA:
            position += k
        elif operation == bpf.JMP_JEQ_K:
            position += jt if accumulator == k else jf
        elif operation == bpf.JMP_JGE_K:
            position += jt if accumulator >= k else jf
        else:
            raise AssertionError(f"operation {operation:#x}")


def test_encodes_as_struct_sock_filter() -> None:
    program = bpf.assemble([bpf.load(4), bpf.equal(7, "end"), bpf.answer(1), bpf.Label("end"),
                            bpf.answer(2)])  # fmt: skip
    assert program == b"".join(
        struct.pack("<HBBI", *row)
        for row in [(0x20, 0, 0, 4), (0x15, 1, 0, 7), (0x06, 0, 0, 1), (0x06, 0, 0, 2)]
    )


@given(
    st.integers(0, 600),
    st.integers(0, 600),
    st.sampled_from([(None, "far"), ("far", None), ("near", "far"), ("far", "near"),
                     ("near", None), (None, "near"), ("near", "near"), ("far", "far")]),
    st.booleans(),
)  # fmt: skip
def test_a_branch_reaches_its_labels_over_any_distance(
    before: int, between: int, arms: tuple[str | None, str | None], taken: bool
) -> None:
    filler = bpf.load(0)
    items: list[bpf.Item] = [
        bpf.load(0),
        bpf.equal(9, *arms),
        bpf.answer(1),
        *[filler] * before,
        bpf.Label("near"),
        bpf.answer(2),
        *[filler] * between,
        bpf.Label("far"),
        bpf.answer(3),
    ]
    wanted = {None: 1, "near": 2, "far": 3}[arms[0] if taken else arms[1]]
    assert run(bpf.assemble(items), 9 if taken else 8) == wanted


@pytest.mark.parametrize("distance", range(250, 260))
def test_the_edge_of_a_byte(distance: int) -> None:
    filler = [bpf.load(0)] * distance
    items = [
        bpf.load(0),
        bpf.equal(9, "a", "b"),
        *filler,
        bpf.Label("a"),
        bpf.answer(1),
        bpf.Label("b"),
        bpf.answer(2),
    ]
    program = bpf.assemble(items)
    assert (run(program, 9), run(program, 8)) == (1, 2)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "empty"),
        ([bpf.load(0)], "runs off"),
        ([bpf.mask(1)], "runs off"),
        ([bpf.equal(1, None, None)], "runs off"),
        ([bpf.Goto("nowhere"), bpf.answer(0)], "does not follow"),
        ([bpf.Label("back"), bpf.load(0), bpf.Goto("back"), bpf.answer(0)], "does not follow"),
        ([bpf.Label("x"), bpf.Label("x"), bpf.answer(0)], "twice"),
        ([bpf.equal(1, "end"), bpf.answer(0), bpf.Label("end")], "at the end"),
        ([bpf.answer(1 << 32)], "32-bit"),
        ([bpf.answer(-1)], "32-bit"),
        ([bpf.answer(0)] * (bpf.MAX_INSTRUCTIONS + 1), "more than 4096"),
    ],
)
def test_refuses(items: list[bpf.Item], message: str) -> None:
    with pytest.raises(bpf.AssemblyError, match=message):
        bpf.assemble(items)


def test_the_longest_program_is_accepted() -> None:
    assert len(bpf.assemble([bpf.answer(0)] * bpf.MAX_INSTRUCTIONS)) == 8 * bpf.MAX_INSTRUCTIONS
