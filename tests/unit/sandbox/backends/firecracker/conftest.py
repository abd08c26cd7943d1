"""A backend on fake programs: a real warden, jail, API, processes and agent, and no virtual CPU."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.firecracker import programs

from agentd.linux.kvm import KvmReport
from agentd.sandbox.backends.firecracker.backend import FirecrackerBackend
from agentd.sandbox.backends.firecracker.programs import Programs
from agentd.sandbox.backends.vm.template import Templates


class Image(NamedTuple):
    kernel: str
    initramfs: str
    digest: str = "sha256:0"
    base: str = "debian"


@pytest.fixture
def place() -> Iterator[Path]:
    """A short folder that other users can look into."""
    with tempfile.TemporaryDirectory(prefix="fc-") as name:
        os.chmod(name, 0o755)  # noqa: S103
        yield Path(name)


@pytest.fixture
def image(place: Path) -> Image:
    for name in ("vmlinux", "initramfs"):
        (place / name).write_bytes(b"\x7fELF " + name.encode())
    return Image(str(place / "vmlinux"), str(place / "initramfs"))


@pytest.fixture
def make_backend(place: Path, image: Image) -> Iterator[Callable[..., FirecrackerBackend]]:
    """``version`` and the settings of ``programs.make``. No jail may be left after the test."""
    base = place / "jails"
    base.mkdir()

    def make(
        version: str = "1.16.1", *, templates: Templates | None = None, **settings: Any
    ) -> FirecrackerBackend:
        folder = place / "bin"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return FirecrackerBackend(
            base=str(base),
            found=Programs(**programs.make(folder, version, **settings)),
            kvm_works=lambda: KvmReport(True),
            image=lambda _: image,
            templates=templates,
        )

    yield make
    left = [str(path) for path in base.glob("*/*")]
    assert left == []
