"""The tables against the headers that this machine has."""

import re
from pathlib import Path

import pytest

from agentd.linux import abi
from agentd.linux.seccomp.tables import MACHINES, numbers

HEADERS = {
    "x86_64": [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/lib/linux/uapi/x86/asm/unistd_64.h",
    ],
    "aarch64": [
        "/usr/include/aarch64-linux-gnu/asm/unistd_64.h",
        "/usr/lib/linux/uapi/arm64/asm/unistd_64.h",
    ],
}


@pytest.mark.parametrize("machine", MACHINES)
def test_has_every_call_of_the_header(machine: str) -> None:
    present = [Path(name) for name in HEADERS[machine] if Path(name).exists()]
    if not present:
        pytest.skip(f"no unistd_64.h for {machine}: install linux-libc-dev")
    found = re.findall(r"#define __NR_(\w+)\s+(\d+)", present[0].read_text())
    header = {name: int(number) for name, number in found if name != "syscalls"}
    ours = numbers(machine)
    # calls past a header's highest are newer than it; up to there the two are the same
    newest = max(header.values())
    later = {"uprobe", "uretprobe"} - header.keys()
    assert header.items() <= ours.items()
    assert {n for n, v in ours.items() if v <= newest and n not in later} == header.keys()


@pytest.mark.parametrize("machine", MACHINES)
def test_no_number_twice(machine: str) -> None:
    table = numbers(machine)
    assert len(set(table.values())) == len(table)
    assert max(table.values()) == 471


def test_agrees_with_the_numbers_the_kernel_port_uses() -> None:
    for machine, port in abi._TABLES.items():
        for holder in port.__mro__[:-1]:
            for name, number in vars(holder).items():
                if not name.startswith("_"):
                    assert numbers(machine)[name] == number, (machine, name)


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(LookupError, match="riscv64"):
        numbers("riscv64")
