"""Images on disk: found by name, verified by digest, replaced whole.

FOLDER/NAME -> .builds/DIGEST    a link, so that one rename replaces an image
FOLDER/.builds/DIGEST/           vmlinux, initramfs.cpio, root.*, manifest.json, verified.json
FOLDER/.packages/, .parts/       what builds are made from
FOLDER/.lock                     held by the one that builds or removes
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

import msgspec

from agentd.image import cache, digest
from agentd.image.model import (
    CMDLINE,
    EROFS,
    EXT4,
    FORMAT,
    INITRAMFS,
    KERNEL,
    Corrupt,
    File,
    Image,
    ImageError,
    ImageManifest,
    NotFound,
)
from agentd.image.oci.source import alike
from agentd.linux import locks
from agentd.linux.replacing import replacing
from agentd.model import typed
from agentd.model.errors import Conflict, InvalidInput
from agentd.model.typed import like

MANIFEST, STAMPS = "manifest.json", "verified.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MAX_MANIFEST = 1 << 20
# Replaced images that are kept: somebody may be about to start a machine from one, above all from
# one that was got lately, as where several versions of agentd share the folder.
_KEPT, _KEPT_LATELY = 1, 4
_LATELY_SECONDS = 3600.0


class Store:
    """Keeps machine images. Raises ImageError when the folder is not safe to start kernels from."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = os.path.abspath(folder or default_folder())

    def get(self, name: str = "default", *, full: bool = False) -> Image:
        """Find an image. Files that changed since they were last hashed, or all if ``full``, are
        hashed again.

        Raises NotFound, Corrupt, ImageError.
        """
        folder, manifest = self.manifest(name)
        self._verify(name, folder, manifest, full)
        with contextlib.suppress(OSError):  # another user's store: it is kept by what they get
            os.utime(folder)

        def path(file: str) -> str | None:
            return os.path.join(folder, file) if file in manifest.files else None

        return like(
            Image,
            manifest,
            name=name,
            folder=folder,
            kernel=os.path.join(folder, KERNEL),
            initramfs=os.path.join(folder, INITRAMFS),
            root_ext4=path(EXT4),
            root_erofs=path(EROFS),
            cmdline="" if KERNEL in manifest.own else CMDLINE,
        )

    def manifest(self, name: str) -> tuple[str, ImageManifest]:
        """Return the folder it leads to, and the manifest there; the files are not looked at.

        Raises NotFound, Corrupt, ImageError, InvalidInput.
        """
        link = os.path.join(self.folder, check_name(name))
        self._check_owner()
        try:
            folder = os.path.join(self.folder, os.readlink(link))
            with open(os.path.join(folder, MANIFEST), "rb") as file:
                data = file.read(_MAX_MANIFEST)
        except FileNotFoundError:
            raise NotFound(f"no image {name!r} in {self.folder}", remediation=_fix(name)) from None
        except OSError as error:
            raise ImageError(f"cannot read the image {name!r}", cause=str(error)) from error
        try:
            manifest = typed.decoder(ImageManifest).decode(data)
        except msgspec.DecodeError as error:
            raise _corrupt(name, f"its manifest is unreadable: {error}") from error
        if manifest.format != FORMAT or manifest.digest != total(manifest.files):
            raise _corrupt(name, "its manifest contradicts itself")
        if not {KERNEL, INITRAMFS} <= manifest.files.keys() <= {KERNEL, INITRAMFS, EXT4, EROFS}:
            raise _corrupt(name, "its manifest lists other files than an image has")
        return folder, manifest

    def check_free(self, name: str) -> None:
        """Check a name. Raises Conflict where an image is called that: no OCI image may be then."""
        for taken in set(alike(name)).intersection(self.ls()):
            raise Conflict(
                f"{taken} is a machine image already",
                remediation=f"give another name, or remove that one: agentd image rm {taken}",
            )

    def ls(self) -> list[str]:
        """List the names of the images, sorted, whatever their state. Raises ImageError."""
        try:
            with os.scandir(self.folder) as entries:
                return sorted(e.name for e in entries if e.is_symlink() and _NAME.fullmatch(e.name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unreachable(error) from error

    def remove(self, name: str) -> None:
        """Remove an image. Raises NotFound."""
        link = os.path.join(self.folder, check_name(name))
        if not os.path.islink(link):
            raise NotFound(f"no image {name!r} in {self.folder}", remediation="see agentd image ls")
        with self.locked():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
            self.clean()

    def clean(self) -> None:
        """Remove the builds that no name leads to. Under the lock."""
        self._clean(keep=0, lately=0)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one builder in at a time; the kernel gives the lock back when the process dies."""
        self._make(self.folder)
        self._check_owner()
        path = os.path.join(self.folder, ".lock")
        try:
            lock = locks.HeldLock(locks.take(path, fcntl.LOCK_EX))
        except OSError as error:
            raise ImageError(
                f"cannot change the images in {self.folder}",
                cause=error.strerror or "",
                remediation="do it as their owner, or set XDG_CACHE_HOME to a folder of your own",
            ) from error
        with lock:
            yield

    @contextlib.contextmanager
    def temporary(self) -> Iterator[str]:
        """Yield a folder for a new build. Under the lock: what crashed builds left is removed."""
        builds = self.inner(".builds")
        for name in os.listdir(builds):
            if name.startswith(".new-"):
                shutil.rmtree(os.path.join(builds, name), ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=".new-", dir=builds)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, name: str, folder: str, manifest: ImageManifest) -> None:
        """Make the temporary folder the image of that name. Under the lock."""
        for file in manifest.files:
            os.chmod(os.path.join(folder, file), 0o644)
        stamps = {file: _stamp(os.path.join(folder, file)) for file in manifest.files}
        _write(os.path.join(folder, MANIFEST), _pretty(manifest))
        _write(os.path.join(folder, STAMPS), msgspec.json.encode(stamps))
        os.chmod(folder, cache.OPEN)
        place = f".builds/{os.path.basename(folder).removeprefix('.new-')}-{manifest.digest[7:23]}"
        os.rename(folder, os.path.join(self.folder, place))
        link = os.path.join(self.folder, check_name(name))
        new = f"{link}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(place, new)
        os.replace(new, link)
        self._clean(_KEPT, _KEPT_LATELY)

    def inner(self, name: str) -> str:
        """Return a folder of the store, made if need be."""
        path = os.path.join(self.folder, name)
        self._make(path)
        return path

    def _make(self, path: str) -> None:
        try:
            cache.make_folders(path)
        except OSError as error:
            raise ImageError(
                f"cannot make {path}",
                cause=error.strerror or "",
                remediation="set XDG_CACHE_HOME to a folder that you can write to",
            ) from error

    def _check_owner(self) -> None:
        try:
            status = os.stat(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unreachable(error) from error
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ImageError(
                f"others may change {self.folder}, and with it the kernels started from it",
                remediation=f"chown and chmod it: yours, mode 0755; or remove {self.folder}",
            )

    def _unreachable(self, error: OSError) -> ImageError:
        """Somebody else's home, or one that is no folder."""
        return ImageError(
            f"cannot look into {self.folder}",
            cause=error.strerror or "",
            remediation="set XDG_CACHE_HOME to a folder that you can write to",
        )

    def _verify(self, name: str, folder: str, manifest: ImageManifest, full: bool) -> None:
        stamps = _read_stamps(folder)
        known = dict(stamps)
        for file, wanted in manifest.files.items():
            path = os.path.join(folder, file)
            try:
                stamp = _stamp(path)
                if (full or stamps.get(file) != stamp) and digest.of_file(path) != wanted.sha256:
                    raise _corrupt(name, f"{file} is not what was built")
            except OSError as error:
                raise _corrupt(name, f"{file}: {error.strerror}") from error
            known[file] = stamp
        if known != stamps:
            # Not ours to write for another user's store: then it is hashed each time.
            with contextlib.suppress(OSError):
                _write(os.path.join(folder, STAMPS), msgspec.json.encode(known))

    def _clean(self, keep: int, lately: int) -> None:
        """Remove builds that no name leads to, but for the ``keep`` that were got last, or
        ``lately`` of those got within the hour. Under the lock."""
        builds = self.inner(".builds")
        used = {os.path.basename(os.readlink(os.path.join(self.folder, n))) for n in self.ls()}
        unused = [os.path.join(builds, n) for n in os.listdir(builds) if n not in used]
        unused.sort(key=os.path.getmtime, reverse=True)
        since = time.time() - _LATELY_SECONDS
        kept = max(keep, sum(os.path.getmtime(path) > since for path in unused[:lately]))
        for path in unused[kept:]:
            shutil.rmtree(path, ignore_errors=True)


def default_folder() -> str:
    return cache.folder("images")


def check_name(name: str) -> str:
    """Check it. Raises InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no name for an image",
            remediation="use lower case letters, digits, '.', '_' and '-', 64 at most",
        )
    return name


def total(files: dict[str, File]) -> str:
    """Return the image's digest."""
    return "sha256:" + digest.of_parts({name: file.sha256 for name, file in files.items()})


def describe(folder: str, names: list[str]) -> dict[str, File]:
    return {
        name: File(digest.of_file(path), os.path.getsize(path))
        for name in names
        if os.path.exists(path := os.path.join(folder, name))
    }


def _stamp(path: str) -> list[int]:
    """Changes with the content: the time of change (ctime) cannot be set by a program."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a plain file")
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_stamps(folder: str) -> dict[str, list[int]]:
    try:
        with open(os.path.join(folder, STAMPS), "rb") as file:
            return msgspec.json.decode(file.read(_MAX_MANIFEST), type=dict[str, list[int]])
    except (OSError, msgspec.DecodeError):
        return {}


def _write(path: str, data: bytes) -> None:
    with replacing(path, 0o644) as file:
        file.write(data)


def _pretty(manifest: ImageManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def _corrupt(name: str, what: str) -> Corrupt:
    return Corrupt(f"the image {name!r} is damaged", cause=what, remediation=_fix(name))


def _fix(name: str) -> str:
    return "agentd image build" + ("" if name == "default" else f" --name {name}")
