"""Files of the user's that take the place of ours in an image."""

import os
import shutil
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


@dataclass(frozen=True)
class Own:
    """Paths. The files are copied into the image, so that later changes do not matter."""

    kernel: str | None = None
    initramfs: str | None = None
    rootfs: str | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing of ours is needed."""
        return self.kernel is not None and self.initramfs is not None

    def names(self) -> tuple[str, ...]:
        """What they are called in the image. Raises InvalidInput."""
        names = [(self.kernel, KERNEL), (self.initramfs, INITRAMFS)]
        if self.rootfs is not None:
            names.append((self.rootfs, _root_name(self.rootfs)))
        return tuple(name for path, name in names if path is not None)

    def copy(self, folder: str) -> None:
        """Raises InvalidInput for what is not what it should be, Unavailable."""
        if self.kernel is not None:
            data = _head(self.kernel, kernel.MAX_BYTES + 1)
            if len(data) > kernel.MAX_BYTES:
                raise InvalidInput(f"{self.kernel} is larger than {kernel.MAX_BYTES} bytes")
            with open(os.path.join(folder, KERNEL), "wb") as file:
                file.write(kernel.unpack(data))
        if self.initramfs is not None:
            if not _head(self.initramfs, 8).startswith(_ARCHIVES):
                raise InvalidInput(
                    f"{self.initramfs} is no initramfs",
                    remediation="give a newc cpio archive, compressed or not",
                )
            _copy(self.initramfs, os.path.join(folder, INITRAMFS))
        if self.rootfs is not None:
            _copy(self.rootfs, os.path.join(folder, _root_name(self.rootfs)))


def _root_name(path: str) -> str:
    head = _head(path, 2048)
    # Magic numbers of the superblocks: fs/ext4/ext4.h, include/uapi/linux/magic.h.
    if head[1080:1082] == b"\x53\xef":
        return EXT4
    if head[1024:1028] == b"\xe2\xe1\xf5\xe0":
        return EROFS
    raise InvalidInput(f"{path} holds neither ext4 nor erofs", remediation="give such an image")


def _head(path: str, size: int) -> bytes:
    if not os.path.isfile(path):
        raise InvalidInput(f"{path} is no plain file", remediation="give the path of one")
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from error


def _copy(source: str, target: str) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise InvalidInput(f"cannot copy {source}: {error.strerror}") from error
