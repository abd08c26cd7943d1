"""A kernel of a few bytes, and a source of packages that needs no network."""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentd.image import build
from agentd.image.debian import Base
from agentd.image.packages import Package
from agentd.image.store import Store
from agentd.image.tree import ImageTree

RELEASE = "6.1.0-test"


def elf(*, pvh: bool = True, release: str = RELEASE) -> bytes:
    """An ELF file with one segment: a note that says where to start it, or another note."""
    note = struct.pack("<III4sQ", 4, 8, 18 if pvh else 7, b"Xen\0", 0x1000000)
    other = struct.pack("<III4sI", 4, 4, 1, b"GNU\0", 0)
    notes = other + note
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), len(notes), 4)
    return header + segment + notes + b"\0Linux version %s (test)\0" % release.encode()


@dataclass
class FakeSource:
    """Counts how often a base was made; ``version`` is that of its only package."""

    version: str = "1"
    made: int = 0
    failure: Exception | None = None
    content: dict[str, bytes] = field(default_factory=lambda: {"/etc/name": b"value\n"})

    def packages(self) -> dict[str, Package]:
        if self.failure:
            raise self.failure
        return {"thing": Package("thing", self.version, f"digest of {self.version}")}

    def make(self, say: Callable[[str], None]) -> Base:
        self.made += 1
        say("making")
        return Base(
            vmlinux=elf(),
            kernel_release=RELEASE,
            python="3.13.5",
            modules_at_boot=["kernel/net/one.ko"],
            modules=ImageTree(),
            small=self._tree(),
            whole=self._tree,
            agent=_agent,
        )

    def _tree(self) -> ImageTree:
        tree = ImageTree()
        for path, data in self.content.items():
            tree.file(path, data)
        return tree


def _agent(sources: dict[str, bytes]) -> ImageTree:
    tree = ImageTree()
    tree.file("/usr/lib/agentd/agent", b"".join(sources[name] for name in sorted(sources)))
    return tree


@pytest.fixture
def vmlinux() -> Callable[..., bytes]:
    return elf


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> FakeSource:
    """Also fixes what decides about staleness: apt's lists are as they were."""
    monkeypatch.setattr(build, "lists_stamp", lambda: "lists-1")
    return FakeSource()
