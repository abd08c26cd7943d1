"""Kernel modules for the guest: which, what they depend on, and modprobe's indexes of them."""

import os
import re
import struct
from collections.abc import Iterable

from agentd.image.tree import ImageTree
from agentd.image.unpack import Damaged, Unknown, unpacked
from agentd.linux import anyip
from agentd.model.errors import Unavailable

# Loaded by /init, in this order, with what they need; whatever else is there is loaded when it is
# asked for. Debian's kernel 6.12 has the first two built in, 6.1 has not.
AT_BOOT = (
    *("virtio_pci", "virtio_console"),
    *("vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport"),
)
ON_DEMAND = (
    "virtio_net",
    "virtio_blk",
    "virtio_mmio",
    "virtio-rng",
    "overlay",
    "erofs",
    "virtiofs",
    *anyip.MODULES,
)
_KINDS = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")
_MAX_BYTES = 64 << 20
_SIGNED = b"~Module signature appended~\n"
_SIGNATURE_INFO = 12


class Modules:
    """The modules of a kernel's package. Names are as modprobe takes them: - and _ are the same."""

    def __init__(self, folder: str) -> None:
        """``folder`` is the kernel's /usr/lib/modules/RELEASE, unpacked."""
        self._paths: dict[str, str] = {}
        for parent, _, names in os.walk(folder):
            for name in names:
                if name.endswith(_KINDS):
                    path = os.path.join(parent, name)
                    self._paths[_plain(name.split(".ko")[0])] = path
        self._folder = folder
        self._built_in = _built_in(folder)

    def missing(self, names: Iterable[str]) -> list[str]:
        """List those that it neither has nor is built with."""
        known = self._paths.keys() | self._built_in
        return [name for name in names if _plain(name) not in known]

    def tree(self, release: str, names: tuple[str, ...], required: tuple[str, ...]) -> ImageTree:
        """Return the modules, decompressed, beneath /usr/lib/modules. Raises Unavailable."""
        tree, chosen = ImageTree(), dict[str, bytes]()
        for name in self.missing(required):
            raise Unavailable(f"the kernel {release} has no module {name}")
        for name in names:
            self._choose(_plain(name), chosen)
        top, dependencies, aliases = f"/usr/lib/modules/{release}", [], []
        for name in sorted(chosen):
            tree.file(f"{top}/{self._inner(name)}", chosen[name])
            needed = " ".join(map(self._inner, self._below(name, chosen)))
            dependencies.append(f"{self._inner(name)}: {needed}".rstrip())
            aliases += [f"alias {a} {name}" for a in _info(chosen[name], "alias")]
        tree.file(f"{top}/modules.dep", _lines(dependencies))
        tree.file(f"{top}/modules.alias", _lines(aliases))
        # Without it modprobe fails for what needs no loading.
        tree.file(
            f"{top}/modules.builtin", _lines([f"kernel/{n}.ko" for n in sorted(self._built_in)])
        )
        return tree

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Return the paths in the guest, below the folder of its modules, of those that are not
        built in and of what they need; each comes after what it needs. Raises Unavailable."""
        order: list[str] = []
        chosen = dict[str, bytes]()
        for name in map(_plain, names):
            self._choose(name, chosen)
            if name in chosen:
                order += [*reversed(self._below(name, chosen)), name]
        return [self._inner(name) for name in dict.fromkeys(order)]

    def _choose(self, name: str, chosen: dict[str, bytes]) -> None:
        if name in chosen or name not in self._paths:
            return
        chosen[name] = _content(self._paths[name])
        for other in self._needs(chosen[name]):
            self._choose(other, chosen)

    def _below(self, name: str, chosen: dict[str, bytes]) -> list[str]:
        """All that it needs, each before what that needs in turn: modprobe loads the last first."""
        found: list[str] = []
        for other in self._needs(chosen[name]):
            for each in (other, *self._below(other, chosen)):
                if each in found:
                    found.remove(each)
                found.append(each)
        return found

    def _needs(self, module: bytes) -> list[str]:
        names = [_plain(n) for value in _info(module, "depends") for n in value.split(",") if n]
        return [name for name in names if name in self._paths]

    def _inner(self, name: str) -> str:
        return os.path.relpath(self._paths[name], self._folder).split(".ko")[0] + ".ko"


def _content(path: str) -> bytes:
    return _without_signature(_decompressed(path))


def _without_signature(module: bytes) -> bytes:
    """As scripts/sign-file appends it: signature, struct module_signature, its length last, magic.

    The kernel takes modules that have none, and checking three took a sixth of the boot under
    software emulation. apt has checked the package, and the guest's root may load what it wants.
    """
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED)
    (length,) = struct.unpack_from(">I", module, end - 4)
    return module[: end - _SIGNATURE_INFO - length]


def _decompressed(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES)
    if path.endswith(".ko"):
        return data
    try:
        return unpacked(data, _MAX_BYTES)
    except (Damaged, Unknown) as error:
        raise Unavailable(f"the module {os.path.basename(path)} is damaged: {error}") from error


def _built_in(folder: str) -> set[str]:
    try:
        with open(os.path.join(folder, "modules.builtin"), encoding="ascii") as file:
            return {_plain(os.path.basename(line.strip())[:-3]) for line in file}
    except FileNotFoundError:
        return set()


def _info(module: bytes, key: str) -> list[str]:
    """Values in the .modinfo section, which is NUL-terminated key=value strings."""
    return [
        value.decode("ascii", "replace")
        for value in re.findall(rb"(?<=\0)" + key.encode() + rb"=([^\0]*)\0", module)
    ]


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
