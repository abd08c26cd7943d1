"""What is said of a program that could not be started, beside what the kernel says."""

import errno
import os
import shutil
import struct
from pathlib import Path

import pytest

from agentd.guest import diagnosis

PATH = b"/usr/bin:/bin"


def _why(name: str, folder: Path, code: int = errno.ENOENT, path: bytes = PATH) -> str:
    return diagnosis.of_program(os.fsencode(name), path, os.fsencode(folder), code)


def _elf(path: Path, loader: bytes, wide: bool, order: str) -> None:
    """A program's head with one PT_INTERP (elf(5))."""
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2]) + bytes(10)
    table, size = (64, 56) if wide else (52, 32)
    text = table + size
    if wide:
        header = struct.pack(
            order + "HHIQQQIHHHHHH", 2, 62, 1, 0, table, 0, 0, 64, size, 1, 0, 0, 0
        )
        entry = struct.pack(order + "IIQQQQQQ", 3, 4, text, 0, 0, len(loader), len(loader), 1)
    else:
        header = struct.pack(order + "HHIIIIIHHHHHH", 2, 3, 1, 0, table, 0, 0, 52, size, 1, 0, 0, 0)
        entry = struct.pack(order + "IIIIIIII", 3, text, 0, 0, len(loader), len(loader), 4, 1)
    path.write_bytes(ident + header + entry + loader + b"\0")


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_loader_that_is_missing(tmp_path: Path, wide: bool, order: str) -> None:
    _elf(tmp_path / "tool", b"/lib/ld-musl-x86_64.so.1.gone", wide, order)
    said = "its loader /lib/ld-musl-x86_64.so.1.gone does not exist in the sandbox"
    assert _why("./tool", tmp_path) == said


def test_a_program_that_is_whole_has_nothing_said_of_it(tmp_path: Path) -> None:
    shutil.copy("/bin/true", tmp_path / "tool")
    (tmp_path / "script").write_text("#!/bin/sh\n")
    (tmp_path / "data").write_bytes(b"\x7fELF")
    for name in ("tool", "script", "data"):
        assert _why(f"./{name}", tmp_path) == ""


def test_a_name_is_looked_for_in_the_path(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/gone/sh\n")
    path = b"/nowhere:" + os.fsencode(tmp_path)
    assert _why("tool", Path("/"), path=path).startswith("its interpreter /gone/sh")
    assert _why("another", Path("/"), path=path) == ""


def test_nothing_is_read_but_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert _why("./pipe", tmp_path) == ""


@pytest.mark.parametrize("code", [errno.E2BIG, errno.EAGAIN])
def test_of_other_errors_nothing_is_said(tmp_path: Path, code: int) -> None:
    (tmp_path / "tool").write_text("#!/gone/sh\n")
    assert _why("./tool", tmp_path, code) == ""
