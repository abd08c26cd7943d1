import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import pytest
import zstandard

from agentd.image import kernel
from agentd.model.errors import InvalidInput

Elf = Callable[..., bytes]


def _bzimage(payload: bytes, release: str = "6.1.0-test") -> bytes:
    """As Documentation/arch/x86/boot.rst lays it out: two setup sectors, then the payload."""
    setup = bytearray(3 * 512)
    setup[0x1F1] = 2
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x20E, 0x100)
    text = f"{release} (builder@host) #1".encode() + b"\0"
    setup[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload + b"what follows"


def _sized(data: bytes, packed: bytes) -> bytes:
    return packed + struct.pack("<I", len(data))


def _lz4(data: bytes, block: int = 8 << 20) -> bytes:
    """The legacy frame that Debian 12's kernels have, as lz4(1) -l writes it."""
    packed = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), block):
        found = lz4.block.compress(data[at : at + block], store_size=False)
        packed += struct.pack("<I", len(found)) + found
    return packed


@pytest.mark.parametrize("method", ["gzip", "xz", "lzma", "bzip2", "zstd", "lz4"])
def test_a_bzimage_is_unpacked(method: str, vmlinux: Elf) -> None:
    elf = vmlinux()
    payload = {
        "gzip": lambda: gzip.compress(elf),
        "xz": lambda: _sized(elf, lzma.compress(elf)),
        "lzma": lambda: _sized(elf, lzma.compress(elf, lzma.FORMAT_ALONE)),
        "bzip2": lambda: _sized(elf, bz2.compress(elf)),
        "zstd": lambda: _sized(elf, zstandard.compress(elf)),
        "lz4": lambda: _sized(elf, _lz4(elf)),
    }[method]()
    image = _bzimage(payload)
    assert kernel.unpack(image) == elf
    assert kernel.release(image) == kernel.release(elf) == "6.1.0-test"


def test_a_kernel_of_several_lz4_blocks(vmlinux: Elf) -> None:
    elf = vmlinux() + bytes(range(256)) * (9 << 12)  # over 8 MiB
    assert kernel.unpack(_bzimage(_sized(elf, _lz4(elf)))) == elf


def test_a_vmlinux_is_its_own(vmlinux: Elf) -> None:
    assert kernel.unpack(vmlinux()) == vmlinux()


def test_the_pvh_note_is_found_and_missed(vmlinux: Elf) -> None:
    assert kernel.has_pvh(vmlinux())
    assert not kernel.has_pvh(vmlinux(pvh=False))
    assert not kernel.has_pvh(vmlinux()[:100])
    assert not kernel.has_pvh(b"\x7fELF\x01")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"#!/bin/sh\n", "neither an ELF file nor a bzImage"),
        (b"", "neither an ELF file nor a bzImage"),
        (_bzimage(b"LZ4?" + bytes(8)), "compressed in a way not known"),
        (_bzimage(_sized(b"x", b"\xfd7zXZ\0" + bytes(8))), "damaged"),
        (_bzimage(_sized(b"x", b"\x28\xb5\x2f\xfd" + bytes(8))), "damaged"),
        (_bzimage(_sized(b"x" * 9, _lz4(b"x" * 9)[:-1])), "damaged: a block is cut off"),
        (_bzimage(_sized(b"x" * 9, _lz4(b"x" * 8))), "damaged: 8 of 9 bytes"),
        (_bzimage(_sized(b"x" * 9, b"\x02\x21\x4c\x18\4\0\0\0\xff\xff\xff\xff")), "damaged"),
        (_bzimage(gzip.compress(b"no kernel at all")), "holds no ELF file"),
        (_bzimage(_sized(b"", b"\x28\xb5\x2f\xfd")[:-4] + b"\xff" * 4), "more than"),
        (_bzimage(bytes(100))[:1560], "cut off"),
    ],
)
def test_what_is_no_kernel_is_refused(image: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        kernel.unpack(image)


def test_a_kernel_that_does_not_say_its_version_is_refused(vmlinux: Elf) -> None:
    with pytest.raises(InvalidInput, match="does not say its version"):
        kernel.release(vmlinux()[:150])
