"""File systems of our own making, each in a file: mounted by a loop device, and at no path.

A mount here is a descriptor alone. With the last of them, and of what was mounted of it elsewhere,
the kernel gives up the file system and the device: nothing is left, whatever kills us (loop(4),
LO_FLAGS_AUTOCLEAR). Needs CAP_SYS_ADMIN.
"""

import errno
import fcntl
import os
import re
import shutil
import struct

from agentd.linux import abi, programs
from agentd.linux.kernel import KERNEL

KIND = "ext4"
_LOOP_GET_STATUS64, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C05, 0x4C0A, 0x4C82
_AUTOCLEAR = 4
CONTROL = "/dev/loop-control"
# struct loop_info64 (linux/loop.h): device, inode, rdevice, offset, sizelimit, number, encryption
# (2), flags, names and keys, init (2).
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
# struct loop_config: the file, the block size, the above, reserved.
_CONFIG = struct.Struct(f"=2I{_INFO.size}s8Q")
_BLOCK = 4096
_IMAGE = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_MOST = 500  # of what mke2fs says
_ATTEMPTS = 64  # others may take a device that was free a moment ago
_LOOP = re.compile(r"loop[0-9]+")


def mount(image: str, *, readonly: bool, userns_fd: int | None = None) -> int:
    """Makes a detached mount of the file system in ``image``, nosuid and nodev; the caller owns the
    descriptor. All mounts of one image are of one file system. With ``userns_fd`` owners are
    translated. Raises OSError."""
    # Two devices of one file would be two file systems that write over each other. The lock is not
    # on the descriptor that the device gets: it keeps that open.
    lock = os.open(image, _IMAGE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        device = _attached(image)
        try:
            fd = _mounted(f"/dev/{device.name}")
        finally:
            os.close(device.fd)
    finally:
        os.close(lock)
    attributes = abi.MOUNT_ATTR_NOSUID | abi.MOUNT_ATTR_NODEV
    attributes |= abi.MOUNT_ATTR_RDONLY if readonly else 0
    attributes |= 0 if userns_fd is None else abi.MOUNT_ATTR_IDMAP
    try:
        KERNEL.mount_setattr(fd, "", abi.AT_EMPTY_PATH, set_=attributes, userns_fd=userns_fd or 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def make(image: str, size: int, owner: int) -> None:
    """Make a file of ``size`` bytes, all of them taken, and in it an empty file system whose top is
    ``owner``'s. Raises OSError."""
    fd = os.open(image, _IMAGE | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)  # a file system must not run out of disk behind its back
    finally:
        os.close(fd)
    options = f"root_owner={owner}:{owner},nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    argv = [program() or "mke2fs", "-q", "-F", "-t", KIND, "-m", "0", "-b", str(_BLOCK)]
    said = programs.ask([*argv, "-E", options, "--", image], None, env={"LANG": "C.UTF-8"})
    if said.code:
        why = said.err.strip()[-_MOST:] or said.code
        raise OSError(errno.EIO, f"mke2fs: {why}", image)
    top = mount(image, readonly=False)
    try:
        os.rmdir("lost+found", dir_fd=top)  # fsck makes it again, should it need it
    finally:
        os.close(top)


def hindrance() -> str:
    """Says why no file can be mounted here; empty where it can, for all that is known before."""
    try:
        os.close(_opened(CONTROL))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def program() -> str | None:
    """Finds mke2fs(8), which ``make`` needs."""
    return shutil.which("mke2fs", path="/usr/local/sbin:/usr/sbin:/sbin")


class _Device:
    """``fd`` keeps it attached until it is mounted."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd


def is_mounted(image: str) -> bool:
    """Return whether anybody has its file system, or the kernel is still giving it up. Raises
    OSError."""
    device = _device_of(image)
    if device is not None:
        os.close(device.fd)
    return device is not None


def _attached(image: str) -> _Device:
    """The loop device of a file, the one that it has already if it has one."""
    device = _device_of(image)
    if device is not None:
        return device
    file = os.open(image, _IMAGE)
    try:
        return _attach(file)
    finally:
        os.close(file)


def _device_of(image: str) -> _Device | None:
    found = os.lstat(image)
    for name in sorted(os.listdir("/sys/block")):
        if _LOOP.fullmatch(name) and os.path.exists(f"/sys/block/{name}/loop"):
            fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
            if _backing(fd) == (found.st_dev, found.st_ino):
                return _Device(name, fd)
            os.close(fd)
    return None


def _backing(fd: int) -> tuple[int, int] | None:
    """Device and inode of the file behind a loop device; None where it has none by now."""
    status = bytearray(_INFO.size)
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
    device, inode, *_ = _INFO.unpack(status)
    return device, inode


def _attach(file: int) -> _Device:
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _AUTOCLEAR, b"", b"", b"", 0, 0)
    config = _CONFIG.pack(file, _BLOCK, info, *(0,) * 8)
    control = _opened(CONTROL)
    try:
        for _ in range(_ATTEMPTS):
            name = f"loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            fd = _opened(f"/dev/{name}")
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return _Device(name, fd)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no loop device is free")


def _opened(device: str) -> int:
    """Raises OSError, whose text says what is lacking: a container has only what it was given."""
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        why = f"no loop device can be had: {device}: {error.strerror}"
        raise OSError(error.errno, why) from error


def _mounted(device: str) -> int:
    context = KERNEL.fsopen(KIND)
    try:
        KERNEL.fsconfig(context, abi.FSCONFIG_SET_STRING, "source", device)
        KERNEL.fsconfig(context, abi.FSCONFIG_SET_STRING, "errors", "remount-ro")
        KERNEL.fsconfig(context, abi.FSCONFIG_CMD_CREATE, None, None)
        return KERNEL.fsmount(context, 0)
    finally:
        os.close(context)
