"""The guest that ``agentd.linux.kvm`` runs: 64 KiB of memory in x86-64 long mode.

Each step does one thing that every kernel does early, then writes its number to a port. The code
is position independent; addresses in it are those of ``fill``.
"""

import mmap
import struct

MEMORY = 0x10000
SREGS_BYTES = 312  # struct kvm_sregs
_CODE, _SCRATCH, _TABLES, _GDT, _IDT, _HANDLER, _STACK = (
    0x1000, 0x3000, 0x4000, 0x8000, 0x9000, 0xA000, 0xF000,
)  # fmt: skip
_PORT = 0xF1

# (what the guest does, its code)
_STEPS = (
    ("writes to a port", b""),
    ("sets its page tables", bytes.fromhex("0f20d8 0f22d8")),  # mov cr3, rax; mov rax, cr3
    # wrmsr LSTAR, 0; swapgs: how a kernel sets up system calls
    ("sets up system calls", bytes.fromhex("b9820000c0 31c0 31d2 0f30 0f01f8")),
    # pxor xmm0, xmm0; movdqu [scratch], xmm0
    ("uses SSE", bytes.fromhex("660fefc0 f30f7f0425") + struct.pack("<I", _SCRATCH)),
    # mov ecx, 100000; loop: dec ecx; jnz loop
    ("loops 100,000 times", bytes.fromhex("b9a0860100 ffc9 75fc")),
    ("takes an exception", b"\xcc"),  # int3, to the handler and back
)
_HANDLED = 0x7F
MARKS = tuple(
    mark
    for number, (name, code) in enumerate(_STEPS, 1)
    for mark in ([(_HANDLED, name)] if code == b"\xcc" else []) + [(number, name)]
)


def fill(memory: mmap.mmap) -> None:
    """Writes code, an identity map of 2 MiB in one large page, descriptors and one handler."""
    code = b"".join(step + _mark(number) for number, (_, step) in enumerate(_STEPS, 1)) + b"\xf4"
    memory[_CODE : _CODE + len(code)] = code
    struct.pack_into("=Q", memory, _TABLES, _TABLES + 0x1000 | 3)  # present, writable
    struct.pack_into("=Q", memory, _TABLES + 0x1000, _TABLES + 0x2000 | 3)
    struct.pack_into("=Q", memory, _TABLES + 0x2000, 0x83)  # and a large page
    # null, 64-bit code, data: flat, ring 0, accessed
    struct.pack_into("=QQQ", memory, _GDT, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    for vector in range(32):
        struct.pack_into(
            "=HHBBHII", memory, _IDT + vector * 16, _HANDLER, 8, 0, 0x8E, 0, 0, 0
        )  # an interrupt gate to the code segment
    handler = _mark(_HANDLED) + b"\x48\xcf"  # iretq
    memory[_HANDLER : _HANDLER + len(handler)] = handler


def long_mode(special: bytearray) -> None:
    """Puts a vCPU's ``struct kvm_sregs`` in 64-bit ring 0 with those tables; keeps the rest."""
    _segment(special, 0, selector=8, kind=11, long=1)
    for index in range(1, 6):  # ds, es, fs, gs, ss
        _segment(special, index, selector=16, kind=3, long=0)
    struct.pack_into("=QH", special, 192, _GDT, 3 * 8 - 1)
    struct.pack_into("=QH", special, 208, _IDT, 32 * 16 - 1)
    cr0 = 0x80050033  # PG AM WP NE ET MP PE
    cr4 = 0x620  # OSXMMEXCPT OSFXSR PAE
    efer = 0x500  # LMA LME
    struct.pack_into("=QQQQQQ", special, 224, cr0, 0, _TABLES, cr4, 0, efer)


def registers() -> bytes:
    """Returns ``struct kvm_regs``: a stack, the code's start, and the flag that is always set."""
    regs = bytearray(144)
    struct.pack_into("=Q", regs, 6 * 8, _STACK)
    struct.pack_into("=QQ", regs, 16 * 8, _CODE, 2)
    return bytes(regs)


def _mark(number: int) -> bytes:
    return bytes((0xB0, number, 0xE6, _PORT))  # mov al, number; out port, al


def _segment(special: bytearray, index: int, *, selector: int, kind: int, long: int) -> None:
    """``struct kvm_segment``: base, limit, selector, type, present, dpl, db, s, l, g."""
    struct.pack_into(
        "=QIH10B", special, index * 24, 0, 0xFFFFFFFF, selector,
        kind, 1, 0, 1 - long, 1, long, 1, 0, 0, 0,
    )  # fmt: skip
