"""The thin port: every kernel call that Python lacks, one method each, errors as OSError.

``tests/recording.py`` has one that only writes down each call. Numbers are in
``agentd.linux.abi``.
"""

import ctypes
import os
from collections.abc import Iterable

from agentd.linux import abi

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_SIG_IGN = 1  # <signal.h>


class Kernel:
    """The real one. Stateless."""

    def syscall(self, number: int, *args: object) -> int:
        """Makes a raw system call. ints go as 64 bits, bytes and ctypes objects as pointers.

        An OSError names the call as its file name.
        """
        words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
        result = int(_syscall(ctypes.c_long(number), *words))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), abi.NAMES.get(number, str(number)))
        return result

    def prctl(self, option: int, a: int = 0, b: object = 0, c: int = 0, d: int = 0) -> int:
        return self.syscall(abi.SYS.prctl, option, a, b, c, d)

    def renameat2(self, source: int, name: bytes, target: int, as_: bytes, flags: int) -> None:
        """Does a rename(2) that refuses to replace, or exchanges two names (``abi.RENAME_*``)."""
        self.syscall(abi.SYS.renameat2, source, name, target, as_, flags)

    def write(self, path: str, text: str) -> None:
        """Writes in one call, as files of /proc and control groups want it. An OSError names it."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        finally:
            os.close(fd)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path)
        os.chmod(path, mode)  # mkdir's mode is cut by the umask

    def make_folder(self, path: str, mode: int) -> bool:
        """Return whether it is new: one that there is stays as it is."""
        try:
            self.mkdir(path, mode)
        except FileExistsError:
            return False
        return True

    def stop_tracing(self, pid: int, number: int) -> None:
        """Let a process that is stopped and that we trace go on untraced, with that signal or 0."""
        self.syscall(abi.SYS.ptrace, abi.PTRACE_DETACH, pid, 0, number)

    def unshare(self, flags: int) -> None:
        self.syscall(abi.SYS.unshare, flags)

    def mount(
        self,
        source: str | None,
        target: str,
        fstype: str | None,
        flags: int,
        data: str | None = None,
    ) -> None:
        words = (_text(source), _text(target), _text(fstype), flags, _text(data))
        try:
            self.syscall(abi.SYS.mount, *words)
        except OSError as error:
            what = f"mount {fstype or 'of what is there'} at {target}"
            raise OSError(error.errno, error.strerror, what) from None

    def umount(self, target: str, flags: int = 0) -> None:
        self.syscall(abi.SYS.umount2, _text(target), flags)

    def pivot_root(self, new_root: str, put_old: str) -> None:
        self.syscall(abi.SYS.pivot_root, _text(new_root), _text(put_old))

    def open_tree(self, dirfd: int, path: str, flags: int) -> int:
        return self.syscall(abi.SYS.open_tree, dirfd, _text(path), flags)

    def move_mount(
        self, from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int
    ) -> None:
        self.syscall(abi.SYS.move_mount, from_fd, _text(from_path), to_fd, _text(to_path), flags)

    def mount_setattr(
        self,
        dirfd: int,
        path: str,
        flags: int,
        *,
        set_: int = 0,
        clear: int = 0,
        propagation: int = 0,
        userns_fd: int = 0,
    ) -> None:
        """Changes mounts (Linux 5.12): attributes to set and clear, whether later mounts come along
        (MS_PRIVATE and others; 0 leaves it), and an idmap."""
        attr = (ctypes.c_uint64 * 4)(set_, clear, propagation, userns_fd)
        self.syscall(
            abi.SYS.mount_setattr,
            dirfd,
            _text(path),
            flags,
            ctypes.byref(attr),
            ctypes.sizeof(attr),
        )

    def fsopen(self, fstype: str) -> int:
        return self.syscall(abi.SYS.fsopen, _text(fstype), abi.FSOPEN_CLOEXEC)

    def reconfigure(self, fd: int, flags: Iterable[str] = (), **options: int) -> None:
        """Change the file system of which ``fd`` is the top: its flags, "ro" among them, and
        options. Raises OSError: EBUSY where a file is open to be written."""
        picked = self.syscall(abi.SYS.fspick, fd, b"", abi.FSPICK_CLOEXEC | abi.FSPICK_EMPTY_PATH)
        try:
            for flag in flags:
                self.fsconfig(picked, abi.FSCONFIG_SET_FLAG, flag, None)
            for key, value in options.items():
                self.fsconfig(picked, abi.FSCONFIG_SET_STRING, key, str(value))
            self.fsconfig(picked, abi.FSCONFIG_CMD_RECONFIGURE, None, None)
        finally:
            os.close(picked)

    def open_mount_namespace(self) -> int:
        """Returns a descriptor of this process's own."""
        return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

    def setns(self, fd: int, kind: int) -> None:
        self.syscall(abi.SYS.setns, fd, kind)

    def fsconfig(self, fd: int, command: int, key: str | None, value: object, aux: int = 0) -> None:
        if isinstance(value, str):
            value = _text(value)
        self.syscall(abi.SYS.fsconfig, fd, command, _text(key), value, aux)

    def fsmount(self, fd: int, attributes: int) -> int:
        return self.syscall(abi.SYS.fsmount, fd, abi.FSMOUNT_CLOEXEC, attributes)

    def signalfd(self, numbers: Iterable[int], fd: int = -1) -> int:
        """Returns a descriptor that tells of pending signals, 128 bytes each (``struct
        signalfd_siginfo``); or ``fd``, which tells of these from now on.

        The caller blocks them: one that is not blocked is delivered instead.
        """
        wanted = ctypes.c_uint64(sum(1 << (number - 1) for number in numbers))
        size = ctypes.sizeof(wanted)
        flags = os.O_CLOEXEC | os.O_NONBLOCK  # as SFD_CLOEXEC and SFD_NONBLOCK are defined
        return self.syscall(abi.SYS.signalfd4, fd, ctypes.byref(wanted), size, flags)

    def capget(self) -> tuple[int, int]:
        """Returns the calling thread's effective and permitted capabilities, as masks by number."""
        data = (ctypes.c_uint32 * 6)()
        self.syscall(abi.SYS.capget, ctypes.byref(_cap_header()), ctypes.byref(data))
        return data[0] | data[3] << 32, data[1] | data[4] << 32

    def stop_ignoring(self, number: int) -> None:
        """Give an ignored signal its default action, one of the C library's own, too: sigaction(3)
        takes none of those."""
        old, default = (ctypes.c_uint64 * 4)(), (ctypes.c_uint64 * 4)()  # the handler is first
        size = ctypes.sizeof(ctypes.c_uint64)
        self.syscall(abi.SYS.rt_sigaction, number, None, ctypes.byref(old), size)
        if old[0] == _SIG_IGN:
            self.syscall(abi.SYS.rt_sigaction, number, ctypes.byref(default), None, size)

    def capset(self, mask: int) -> None:
        """Holds the capabilities of ``mask``, by number, in force, and no other; none is inherited
        (capset(2), version 3). Raises OSError (EPERM) for one that is not permitted now."""
        low, high = mask & 0xFFFFFFFF, mask >> 32
        data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
        self.syscall(abi.SYS.capset, ctypes.byref(_cap_header()), ctypes.byref(data))

    def capset_same(self) -> None:
        """Set what is set: whether the call can be made."""
        data = (ctypes.c_uint32 * 6)()
        self.syscall(abi.SYS.capget, ctypes.byref(_cap_header()), ctypes.byref(data))
        self.syscall(abi.SYS.capset, ctypes.byref(_cap_header()), ctypes.byref(data))

    def capset_effective(self) -> None:
        """Have all permitted capabilities in force, as after a change of the effective user."""
        _, permitted = self.capget()
        self.capset(permitted)

    def sethostname(self, name: str) -> None:
        raw = name.encode()
        self.syscall(abi.SYS.sethostname, raw, len(raw))


KERNEL = Kernel()


def _cap_header() -> "ctypes.Array[ctypes.c_uint32]":
    return (ctypes.c_uint32 * 2)(0x20080522, 0)


def _text(value: str | None) -> bytes | None:
    return None if value is None else os.fsencode(value)
