import lzma
import struct
from pathlib import Path

import pytest

from agentd.image.modules import AT_BOOT, Modules
from agentd.model.errors import Unavailable


def _module(depends: str = "", alias: str = "") -> bytes:
    info = b"\0license=GPL\0depends=%s\0" % depends.encode()
    if alias:
        info += b"alias=%s\0" % alias.encode()
    return b"\x7fELF" + info + b"end"


def _signed(module: bytes) -> bytes:
    signature = b"s" * 70
    info = struct.pack(">BBBBBxxxI", 0, 0, 2, 0, 0, len(signature))
    return module + signature + info + b"~Module signature appended~\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = tmp_path / "kernel" / "net"
    net.mkdir(parents=True)
    (net / "low.ko.xz").write_bytes(lzma.compress(_signed(_module())))
    (net / "middle-one.ko").write_bytes(_module("low"))
    (net / "vsock.ko.xz").write_bytes(lzma.compress(_module("middle_one,low", "net-pf-40")))
    (net / "unwanted.ko").write_bytes(_module())
    built_in = "kernel/fs/fuse/virtiofs.ko\nkernel/drivers/virtio/virtio_pci.ko\n"
    (tmp_path / "modules.builtin").write_text(built_in)
    return tmp_path


def test_what_a_module_depends_on_comes_with_it(folder: Path) -> None:
    tree = Modules(str(folder)).tree("6.1", ("vsock",), ("vsock",))
    top = "/usr/lib/modules/6.1"
    assert f"{top}/kernel/net/low.ko" in tree
    assert f"{top}/kernel/net/unwanted.ko" not in tree
    lines = tree[f"{top}/modules.dep"].data.decode().splitlines()
    # modprobe loads from the right, so that each finds what it needs.
    assert "kernel/net/vsock.ko: kernel/net/middle-one.ko kernel/net/low.ko" in lines
    assert tree[f"{top}/modules.alias"].data == b"alias net-pf-40 vsock\n"
    assert b"virtiofs.ko" in tree[f"{top}/modules.builtin"].data


def test_modules_are_decompressed_and_lose_their_signature(folder: Path) -> None:
    tree = Modules(str(folder)).tree("6.1", ("low",), ())
    assert tree["/usr/lib/modules/6.1/kernel/net/low.ko"].data == _module()


def test_only_those_that_are_not_built_in_are_loaded_at_boot(folder: Path) -> None:
    loaded = Modules(str(folder)).in_order(AT_BOOT)
    assert loaded == ["kernel/net/low.ko", "kernel/net/middle-one.ko", "kernel/net/vsock.ko"]


def test_a_missing_module_is_named(folder: Path) -> None:
    modules = Modules(str(folder))
    modules.tree("6.1", (), ("virtiofs",))
    with pytest.raises(Unavailable, match=r"6\.1 has no module nosuch"):
        modules.tree("6.1", (), ("nosuch",))
