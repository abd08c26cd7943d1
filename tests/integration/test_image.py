"""One real build, of Debian's packages: as apt finds them here, and started once."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.image import build as build_module
from agentd.image import cpio, kernel
from agentd.image.build import build
from agentd.image.model import Image
from agentd.image.store import Store
from agentd.image.tree import ImageTree
from agentd.model.errors import Unavailable

QEMU = "qemu-system-x86_64"
MEBIBYTE = 1 << 20
BOOT_SECONDS = 180
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A folder of its own; packages that are unpacked already are shared, not downloaded again."""
    store = Store(str(tmp_path_factory.mktemp("cache") / "images"))
    shared = Path(Store().folder) / ".packages"
    if shared.is_dir():
        shutil.copytree(
            shared,
            store.inner(".packages"),
            symlinks=True,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.cpio", ".download-*", "tmp*"),
        )
    return store


@pytest.fixture(scope="module")
def image(store: Store) -> Image:
    try:
        return build(store=store)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tree(image: Image) -> ImageTree:
    return cpio.read(Path(image.initramfs).read_bytes())


def test_the_kernel_can_be_started_directly(image: Image) -> None:
    vmlinux = Path(image.kernel).read_bytes()
    assert kernel.has_pvh(vmlinux)
    assert kernel.release(vmlinux) == image.kernel_release


def test_the_initramfs_is_small(image: Image) -> None:
    assert os.path.getsize(image.initramfs) <= 27 * MEBIBYTE  # Debian 12's is the larger


@pytest.mark.parametrize(
    "path",
    [
        "/init",
        "/usr/bin/bash",
        "/usr/bin/ls",
        "/usr/bin/python3",
        "/usr/bin/sh",
        "/usr/lib/agentd/agentd/guest/main.pyc",
        "/usr/lib/agentd/agentd/linux/kernel.pyc",
        "/usr/lib/agentd/agentd/_version.pyc",
        "/usr/lib64/ld-linux-x86-64.so.2",
    ],
)
def test_the_guest_has(path: str, tree: ImageTree) -> None:
    assert path in tree


def test_links_lead_somewhere(tree: ImageTree) -> None:
    paths = {path for path, _ in tree.items()}
    for path, entry in tree.items():
        if entry.mode & 0o170000 != 0o120000 or path == "/etc/mtab":
            continue
        target = os.path.normpath(os.path.join(os.path.dirname(path), os.fsdecode(entry.data)))
        assert target in paths or target.replace("/lib/", "/usr/lib/", 1) in paths, path


def test_the_agents_modules_import_what_is_there(tree: ImageTree) -> None:
    """Each module that the agent's sources import at all is in the guest, or built into Python."""
    import ast
    import sys

    top = "/usr/lib/python" + tree["/usr/bin/python3"].data.decode().removeprefix("python")
    missing = set()
    for name, text in build_module.bundle.sources().items():
        for node in ast.walk(ast.parse(text, name)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for module in (each.split(".")[0] for each in names):
                if module in sys.builtin_module_names or module == "agentd":
                    continue
                native = [
                    p for p, _ in tree.items() if p.startswith(f"{top}/lib-dynload/{module}.")
                ]
                if not (native or f"{top}/{module}.pyc" in tree or f"{top}/{module}" in tree):
                    missing.add(module)
    # Part of the interpreter there, though a module of its own in some builds of Python.
    assert missing <= {"array", "binascii", "fcntl", "math", "select", "zlib", "unicodedata"}


def test_building_again_gives_the_same(image: Image, store: Store) -> None:
    for name in os.listdir(store.inner(".packages")):
        if name.endswith(".cpio"):
            os.unlink(f"{store.inner('.packages')}/{name}")
    assert build("again", store=store).digest == image.digest


@pytest.fixture
def console(image: Image, tmp_path: Path) -> Iterator[Path]:
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    path = tmp_path / "console"
    argv = [
        *(QEMU, "-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "256M", "-no-reboot"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
        *("-serial", f"file:{path}", "-kernel", image.kernel, "-initrd", image.initramfs),
        *("-append", f"{image.cmdline} console=ttyS0 quiet panic=-1 -- --listen vsock:5000"),
    ]
    with open(tmp_path / "qemu", "wb") as log:
        guest = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield path
        finally:
            guest.kill()
            guest.wait()


def test_the_agent_listens(console: Path) -> None:
    """Its vsock socket needs the modules that /init loads."""
    deadline = time.monotonic() + BOOT_SECONDS
    text = ""
    while "listening on vsock:5000" not in text:
        assert time.monotonic() < deadline, text[-2000:]
        assert "panic" not in text, text[-2000:]
        time.sleep(0.1)
        text = console.read_text(errors="replace") if console.exists() else ""
    assert "is not loaded" not in text
