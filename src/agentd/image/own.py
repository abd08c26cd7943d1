"""Files of the user's that take the place of ours in an image."""

import errno
import os
import shutil
import stat
from dataclasses import dataclass

from agentd.image import kernel
from agentd.image.model import EROFS, EXT4, INITRAMFS, KERNEL
from agentd.model.errors import InvalidInput

# Of what the kernel unpacks (init/initramfs.c, lib/decompress.c): cpio itself, gzip, bzip2, lzma,
# xz, lzo, lz4, zstd.
_ARCHIVES = (
    *(b"070701", b"070702", b"\x1f\x8b", b"BZh", b"\x5d\0\0", b"\xfd7zXZ", b"\x89LZO"),
    *(b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd"),
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_INITRAMFS = "an initramfs: a newc cpio archive, compressed or not"


@dataclass(frozen=True)
class OwnFiles:
    """Paths. The files are copied into the image, so that later changes do not matter."""

    kernel: str | None = None
    initramfs: str | None = None
    rootfs: str | None = None

    @property
    def complete(self) -> bool:
        """Return whether nothing of ours is needed."""
        return self.kernel is not None and self.initramfs is not None

    def names(self) -> tuple[str, ...]:
        """Return what they are called in the image. Raises InvalidInput."""
        names = [(self.kernel, KERNEL), (self.initramfs, INITRAMFS)]
        if self.rootfs is not None:
            names.append((self.rootfs, _root_name(self.rootfs)))
        return tuple(name for path, name in names if path is not None)

    def copy(self, folder: str) -> None:
        """Copy them. Raises InvalidInput for what is not what it should be, Unavailable."""
        if self.kernel is not None:
            data = _head(self.kernel, kernel.MAX_BYTES + 1, "a kernel: a vmlinux or a bzImage")
            if len(data) > kernel.MAX_BYTES:
                raise InvalidInput(
                    f"{self.kernel} is larger than {kernel.MAX_BYTES} bytes",
                    remediation="give a kernel: a vmlinux or a bzImage",
                )
            with open(os.path.join(folder, KERNEL), "wb") as file:
                file.write(kernel.unpack(data))
        if self.initramfs is not None:
            if not _head(self.initramfs, 8, _INITRAMFS).startswith(_ARCHIVES):
                raise InvalidInput(
                    f"{self.initramfs} is no initramfs", remediation=f"give {_INITRAMFS}"
                )
            _copy(self.initramfs, os.path.join(folder, INITRAMFS))
        if self.rootfs is not None:
            _copy(self.rootfs, os.path.join(folder, _root_name(self.rootfs)))


def _root_name(path: str) -> str:
    head = _head(path, 2048, "a root file system: an ext4 or erofs image")
    # Magic numbers of the superblocks: fs/ext4/ext4.h, include/uapi/linux/magic.h.
    if head[1080:1082] == b"\x53\xef":
        return EXT4
    if head[1024:1028] == b"\xe2\xe1\xf5\xe0":
        return EROFS
    raise InvalidInput(f"{path} holds neither ext4 nor erofs", remediation="give such an image")


def _head(path: str, size: int, what: str) -> bytes:
    """``what`` its bytes are to be, for the refusal."""
    try:
        plain = stat.S_ISREG(os.stat(path).st_mode)
        why = "" if plain else "it is a directory, a device or the like"
        if plain:
            with open(path, "rb") as file:
                return file.read(size)
    except OSError as error:
        why = error.strerror or ""
    except ValueError as error:  # a NUL in it
        why = str(error)
    raise InvalidInput(
        f"{path} is no plain file that can be read",
        cause=why,
        remediation=f"give {what}; relative paths begin at {os.getcwd()}",
    )


def _copy(source: str, target: str) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno in _FULL or error.filename == target:  # it is not the file that is wrong
            raise OSError(error.errno, error.strerror, target) from error
        raise InvalidInput(
            f"cannot copy {source} into the image",
            cause=error.strerror or "",
            remediation="see that it can be read",
        ) from error
