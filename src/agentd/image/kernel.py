"""Linux images: from a bzImage to the vmlinux in it, and what a vmlinux says of itself.

A monitor starts a vmlinux with a PVH note directly: no decompression in the guest, a second
less under software emulation. Offsets: Documentation/arch/x86/boot.rst of Linux.
"""

import re
import struct

from agentd.image.unpack import Damaged, Unknown, unpacked
from agentd.model.errors import InvalidInput

MAX_BYTES = 512 << 20
_ELF = b"\x7fELF"
_HEADER_BYTES = 0x250  # of a bzImage, as far as it is read
_PVH = 18  # XEN_ELFNOTE_PHYS32_ENTRY, include/xen/interface/elfnote.h
_PT_NOTE = 4
_FIX = "give an x86-64 vmlinux or bzImage"


def unpack(image: bytes) -> bytes:
    """Return the vmlinux in ``image``, itself if it is one. Raises InvalidInput."""
    if image.startswith(_ELF):
        return image
    _check_header(image)
    (sectors,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((sectors or 4) + 1) * 512 + offset
    payload = image[start : start + length]
    if len(payload) != length or length < 8:
        raise InvalidInput("the bzImage is cut off", remediation=_FIX)
    vmlinux = _decompress(payload)
    if not vmlinux.startswith(_ELF):
        raise InvalidInput("the bzImage holds no ELF file", remediation=_FIX)
    return vmlinux


def release(image: bytes) -> str:
    """Return it as uname -r prints it. Raises InvalidInput."""
    if image.startswith(_ELF):
        found = re.search(rb"Linux version ([\w.+~-]{1,64}) ", image)
        text = found[1] if found else b""
    else:
        _check_header(image)
        (offset,) = struct.unpack_from("<H", image, 0x20E)
        text = image[offset + 0x200 :][:64].split(b"\0")[0].split(b" ")[0]
    if not text:
        raise InvalidInput("the kernel does not say its version", remediation=_FIX)
    return text.decode("ascii", "replace")


def _check_header(image: bytes) -> None:
    if image[0x202:0x206] != b"HdrS":
        raise InvalidInput("the kernel is neither an ELF file nor a bzImage", remediation=_FIX)
    if len(image) < _HEADER_BYTES:
        raise InvalidInput("the bzImage is cut off", remediation=_FIX)


def has_pvh(vmlinux: bytes) -> bool:
    """Return whether a monitor can start this ELF file at its 32-bit PVH entry."""
    if len(vmlinux) < 64 or vmlinux[4:6] != b"\x02\x01":
        return False
    (table,) = struct.unpack_from("<Q", vmlinux, 32)
    size, count = struct.unpack_from("<HH", vmlinux, 54)
    for index in range(count):
        at = table + index * size
        if at + 56 > len(vmlinux):
            return False
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", vmlinux, at)
        if kind == _PT_NOTE and _has_note(vmlinux[offset : offset + length]):
            return True
    return False


def _has_note(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name, content, kind = struct.unpack_from("<III", notes, at)
        if kind == _PVH and notes[at + 12 : at + 12 + name] == b"Xen\0":
            return True
        at += 12 + name + -name % 4 + content + -content % 4
    return False


def _decompress(payload: bytes) -> bytes:
    # The four bytes at the end are the size when unpacked (scripts/Makefile.lib, size_append),
    # except for gzip, which ends with it anyway.
    (size,) = struct.unpack("<I", payload[-4:])
    if size > MAX_BYTES:
        raise InvalidInput(f"the bzImage says it holds {size} bytes, more than {MAX_BYTES}")
    try:
        vmlinux = unpacked(payload if payload.startswith(b"\x1f\x8b") else payload[:-4], size)
    except Damaged as error:
        raise InvalidInput(f"the bzImage's content is damaged: {error}") from error
    except Unknown as error:
        raise InvalidInput(
            f"the bzImage is compressed in a way not known here ({error})",
            remediation="give the vmlinux itself, as linux/scripts/extract-vmlinux unpacks it",
        ) from error
    if len(vmlinux) != size:
        raise InvalidInput(f"the bzImage's content is damaged: {len(vmlinux)} of {size} bytes")
    return vmlinux
