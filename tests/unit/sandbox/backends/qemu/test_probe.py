"""Which accelerator is taken: what the machine's KVM can, and what the QEMU here was built with."""

from pathlib import Path

import pytest

from agentd.linux import abi
from agentd.sandbox.backends.qemu import probe

pytestmark = pytest.mark.skipif(abi.MACHINE != "x86_64", reason="the guest is x86_64")


@pytest.mark.parametrize(
    ("accelerators", "expected"),
    [("tcg kvm", "QEMU 10.0.1, accel=kvm"), ("tcg", "was built without KVM")],
)
def test_kvm_is_taken_where_both_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerators: str, expected: str
) -> None:
    program = tmp_path / probe.PROGRAM
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 10.0.1" || '
        f"printf '%s\\n' 'Accelerators supported in QEMU binary:' {accelerators}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(probe, "_kvm", lambda: (True, ""))
    blockers, [note] = probe.examine()
    assert blockers == []
    assert expected in note
