"""The base of our own images: Debian's kernel for clouds, its Python, and busybox."""

import contextlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from agentd.image import cpio, etc, kernel, packages, userland
from agentd.image.digest import of_parts
from agentd.image.distribution import ELSEWHERE
from agentd.image.modules import AT_BOOT, ON_DEMAND, Modules
from agentd.image.packages import Index, Package
from agentd.image.tree import ImageTree
from agentd.linux import anyip
from agentd.model.errors import InvalidInput, Unavailable

Say = Callable[[str], None]
_KERNEL, _BUSYBOX, _PYTHON = "linux-image-cloud-amd64", "busybox-static", "python3-minimal"
_REAL_KERNEL = re.compile(r"linux-image-\d[\w.+-]*")
_FOLLOWED = re.compile(r"lib(?!gcc-s1|.*(-dev|-data|-bin)$).*|zlib1g")
_UNWANTED = re.compile(
    r"usr/share/(doc|man|info|lintian|locale|bash-completion|menu)/.*|usr/lib/debug/.*"
)
_MODULES_KEPT = re.compile(
    r".*/(drivers/(net/(virtio_net|net_failover)|block/virtio_blk|virtio/|char/hw_random/virtio"
    r"|char/virtio_console)"
    r"|net/(core|vmw_vsock)|fs/(fuse|overlayfs|erofs|netfs)|lib|crypto|arch/x86/crypto"
    r"|net/(ipv[46]/)?netfilter/(nfnetlink|nf_(tables|nat|conntrack|defrag_ipv[46])"
    r"|nft_(chain_nat|redir|ct))\.)[^ ]*"
    r"|.*/modules\.builtin"
)


@dataclass(frozen=True)
class Base:
    """The parts that an image is put together from. ``agent`` compiles the agent's sources."""

    vmlinux: bytes
    kernel_release: str
    python: str
    modules_at_boot: list[str]
    modules: ImageTree
    small: ImageTree
    whole: Callable[[], ImageTree]
    agent: Callable[[dict[str, bytes]], ImageTree]


@dataclass
class Debian:
    """``base`` is ``debian`` or ``busybox``, which has less Python and no bash. ``own_kernel``: the
    user has one, so that there are no modules either."""

    base: str
    cache: str
    own_kernel: bool = False
    _found: dict[str, Package] = field(default_factory=dict)

    def packages(self) -> dict[str, Package]:
        """Return them as apt's lists have them now. Raises Unavailable."""
        if not self._found:
            if platform.machine() != "x86_64":
                raise Unavailable(
                    f"images for {platform.machine()} are not built here: x86_64 only",
                    remediation="give --kernel and --initramfs of your own",
                )
            self._found = self._resolve()
        return self._found

    def _resolve(self) -> dict[str, Package]:
        with packages.indexed(self.cache) as index:
            return self._resolved(index)

    def _resolved(self, index: Index) -> dict[str, Package]:
        first = packages.require([*self._kernels(), _BUSYBOX, _PYTHON], index)
        real = [_named(first[name], _REAL_KERNEL) for name in self._kernels()]
        minimal = _named(first[_PYTHON], re.compile(r"python3\.\d+-minimal"))
        version = minimal.removesuffix("-minimal")
        roots = [
            minimal,
            f"lib{version}-minimal",
            f"lib{version}-stdlib",
            "bash",
            "ca-certificates",
        ]
        found = packages.closure(roots, lambda name: _FOLLOWED.fullmatch(name) is not None, index)
        found |= packages.require(real, index)
        found[_BUSYBOX] = first[_BUSYBOX]
        return found

    def _kernels(self) -> list[str]:
        return [] if self.own_kernel else [_KERNEL]

    def make(self, say: Say) -> Base:
        """Download, unpack, choose, compile. Raises Unavailable, InvalidInput."""
        found = self.packages()
        self._forget_narrow_kernels(found)
        folders = packages.unpack(found.values(), self.cache, _keep, say)
        image = _no_kernel()
        for name in [name for name in found if _REAL_KERNEL.fullmatch(name)]:
            say("kernel modules")
            with packages.reading([found[name]], folders[name]):
                image = _kernel(name, folders.pop(name))
        version = next(n for n in found if re.fullmatch(r"python3\.\d+-minimal", n))[6:-8]
        made = _Userland(self.cache, found, folders, version, self.base)
        _tidy(self.cache, {package.folder for package in found.values()})
        key = of_parts({"base": self.base, **{p.name: p.sha256 for p in found.values()}})
        return Base(
            vmlinux=image.vmlinux,
            kernel_release=image.release,
            python=found[f"python{version}-minimal"].version.split("-")[0],
            modules_at_boot=image.at_boot,
            modules=image.modules,
            small=made.cached(f"{key[:16]}-small", made.small, say),
            whole=lambda: made.cached(f"{key[:16]}-whole", made.whole, say),
            agent=made.agent,
        )

    def _forget_narrow_kernels(self, found: dict[str, Package]) -> None:
        """Those in the cache of which an older agentd kept fewer modules than are needed now."""
        for name, package in found.items():
            folder = os.path.join(self.cache, package.folder)
            if _REAL_KERNEL.fullmatch(name) and os.path.isdir(folder):
                release = name.removeprefix("linux-image-")
                modules = Modules(os.path.join(folder, "usr/lib/modules", release))
                if modules.missing((*AT_BOOT, *anyip.MODULES)):
                    shutil.rmtree(folder)


class _Kernel(NamedTuple):
    vmlinux: bytes
    release: str
    at_boot: list[str]
    modules: ImageTree


def _no_kernel() -> _Kernel:
    return _Kernel(b"", "", [], ImageTree())


def _kernel(name: str, folder: str) -> _Kernel:
    """Raises OSError, InvalidInput, Unavailable."""
    path = f"boot/vmlinuz-{name.removeprefix('linux-image-')}"
    with open(os.path.join(folder, path), "rb") as file:
        image = file.read()
    try:
        release, vmlinux = kernel.release(image), kernel.unpack(image)
    except InvalidInput as error:
        raise Unavailable(f"/{path}: {error.message}", remediation=ELSEWHERE) from error
    modules = Modules(os.path.join(folder, "usr/lib/modules", release))
    tree = modules.tree(release, AT_BOOT + ON_DEMAND, AT_BOOT)
    return _Kernel(vmlinux, release, modules.in_order(AT_BOOT), tree)


def _tidy(cache: str, wanted: set[str]) -> None:
    """Remove packages of other versions, and archives made by other code."""
    for name in os.listdir(cache):
        path = os.path.join(cache, name)
        if name.endswith(f"-{recipe()[:16]}.cpio") or name in wanted:
            continue
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            # A folder that another machine shares is under its lock, too, and not under ours.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class _Userland:
    """Trees made from the packages of programs, and kept as archives beside them."""

    def __init__(
        self,
        cache: str,
        found: dict[str, Package],
        folders: dict[str, str],
        version: str,
        base: str,
    ) -> None:
        """``folders``: where each package is unpacked."""
        self._cache, self._found, self._folders = cache, found, folders
        self._version, self._is_small = version, base == "busybox"

    def small(self, merged: str) -> ImageTree:
        tree = self._common()
        tree.update(userland.libraries(merged, small=self._is_small))
        tree.update(userland.python(merged, self._version, small=self._is_small))
        if not self._is_small:
            tree.update(userland.bash(merged))
        return tree

    def whole(self, merged: str) -> ImageTree:
        tree = self._common()
        tree.update(userland.whole_libraries(merged))
        tree.update(userland.whole_python(merged, self._version))
        tree.update(userland.bash(merged))
        tree.update(userland.certificates(merged))
        return tree

    def agent(self, sources: dict[str, bytes]) -> ImageTree:
        with self._merged() as merged:
            return userland.agent(merged, self._version, sources)

    def cached(self, name: str, make: Callable[[str], ImageTree], say: Say) -> ImageTree:
        path = os.path.join(self._cache, f"{name}-{recipe()[:16]}.cpio")
        try:
            with open(path, "rb") as file:
                return cpio.read(file.read())
        except FileNotFoundError:
            say(f"Python {self._version}: byte code")
        with self._merged() as merged:
            tree = make(merged)
        with tempfile.NamedTemporaryFile(dir=self._cache, delete=False) as out:
            out.write(cpio.write(tree))
        os.rename(out.name, path)
        return tree

    def _common(self) -> ImageTree:
        tree = etc.tree("agentd guest (of Debian packages)")
        busybox = self._folders[_BUSYBOX]
        with packages.reading([self._found[_BUSYBOX]], busybox):
            tree.update(userland.busybox(busybox))
        return tree

    @contextlib.contextmanager
    def _merged(self) -> Iterator[str]:
        """All packages in one tree of links, so that Python finds its library beside it. It lies
        in the cache: what a killed build leaves is tidied up by the next."""
        names = sorted(self._folders.keys() - {_BUSYBOX})
        with tempfile.TemporaryDirectory(prefix="tree-", dir=self._cache) as folder:
            for name in names:
                shutil.copytree(
                    self._folders[name],
                    folder,
                    symlinks=True,
                    dirs_exist_ok=True,
                    copy_function=_link,
                )
            with packages.reading([self._found[name] for name in names], folder):
                yield folder


def _link(source: str, target: str) -> str:
    """A hard link where the cache and the temporary folder share a file system, else a copy."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target


def _named(package: Package, pattern: "re.Pattern[str]") -> str:
    for name in package.depends:
        if pattern.fullmatch(name):
            return name
    raise Unavailable(f"{package.name} {package.version} depends on no {pattern.pattern}")


def _keep(path: str) -> bool:
    if _UNWANTED.fullmatch(path):
        return False
    return "/modules/" not in path or _MODULES_KEPT.fullmatch(path) is not None


def recipe() -> str:
    """Changes with the code that makes trees."""
    folder, parts = os.path.dirname(__file__), {}
    for name in sorted(os.listdir(folder)):
        if name.endswith((".py", ".sh")):
            with open(os.path.join(folder, name), "rb") as file:
                parts[name] = file.read()
    return of_parts(parts)
