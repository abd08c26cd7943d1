"""posix_spawn(3) with what Python's own cannot say: a cgroup, and the signals of the C library.

It is a vfork: the agent's memory is not copied. Where the C library knows no groups (glibc has them
since 2.39), who needs one forks.
"""

import ctypes
import os
from collections.abc import Callable, Iterable

# <spawn.h>
_SETSIGDEF, _SETSIGMASK, _SETSID, _SETCGROUP = 0x04, 0x08, 0x80, 0x100
# posix_spawnattr_t has 336 bytes, posix_spawn_file_actions_t 80, sigset_t 128.
_ROOM = 512
# Those by which threads are cancelled, change their uid and meet: SIGCANCEL, SIGSETXID, and musl's
# SIGSYNCCALL. sigaddset(3) takes none of them, so their bits are set by hand.
INTERNAL = (32, 33, 34)
_libc = ctypes.CDLL(None)
_execve = ctypes.CDLL(None, use_errno=True).execve


def knows_groups() -> bool:
    return hasattr(_libc, "posix_spawnattr_setcgroup_np")


class LibcSpawner:
    """Starts leaders of sessions."""

    def __init__(self, group: int, ignored: Iterable[int]) -> None:
        """``group``: a cgroup's directory, which is borrowed, or -1. ``ignored``: signals to be
        reset, as every other handler is by execve(2); those of the C library always are.
        """
        self._stdio: tuple[int, int, int] | None = None  # those of ``_actions``
        self._actions = ctypes.create_string_buffer(_ROOM)
        self._attributes = ctypes.create_string_buffer(_ROOM)
        none, reset = ctypes.create_string_buffer(_ROOM), ctypes.create_string_buffer(_ROOM)
        _libc.sigemptyset(none)
        _libc.sigemptyset(reset)
        for number in ignored:
            _libc.sigaddset(reset, int(number))
        # Without this they are ignored in the child, where clone3(2) is not to be had: behind a
        # seccomp filter that cannot judge it, before glibc 2.39, and with musl.
        ctypes.c_uint64.from_buffer(reset).value |= sum(1 << (number - 1) for number in INTERNAL)
        flags = _SETSIGDEF | _SETSIGMASK | _SETSID | (_SETCGROUP if group >= 0 else 0)
        _check(_libc.posix_spawnattr_init(self._attributes))
        _check(_libc.posix_spawnattr_setflags(self._attributes, ctypes.c_short(flags)))
        _check(_libc.posix_spawnattr_setsigmask(self._attributes, none))
        _check(_libc.posix_spawnattr_setsigdefault(self._attributes, reset))
        if group >= 0:
            _check(_libc.posix_spawnattr_setcgroup_np(self._attributes, group))

    def prepare(
        self, stdio: tuple[int, int, int], argv: list[bytes], env: dict[bytes, bytes]
    ) -> Callable[[bytes], int]:
        """Return a function that starts a program with these; it returns the pid, or raises
        OSError."""
        words = _vectors(argv, env)
        actions = self._file_actions(stdio)

        def attempt(program: bytes) -> int:
            pid = ctypes.c_int()
            _check(_libc.posix_spawn(ctypes.byref(pid), program, actions, self._attributes, *words))
            return pid.value

        return attempt

    def _file_actions(self, stdio: tuple[int, int, int]) -> "ctypes.Array[ctypes.c_char]":
        """Made anew for other numbers only: one command after the other has the same."""
        if self._stdio != stdio:
            if self._stdio is not None:
                _libc.posix_spawn_file_actions_destroy(self._actions)
            self._stdio = None
            _check(_libc.posix_spawn_file_actions_init(self._actions))
            self._stdio = stdio
            for number, fd in enumerate(stdio):
                _check(_libc.posix_spawn_file_actions_adddup2(self._actions, fd, number))
        return self._actions


def becoming(argv: list[bytes], env: dict[bytes, bytes]) -> Callable[[bytes], int]:
    """Returns a function that becomes a program with these, or raises OSError: execve(2) itself, as
    Python's refuses names of variables that are empty or hold ``=``."""
    words = _vectors(argv, env)

    def execute(program: bytes) -> int:
        _execve(program, *words)
        raise OSError(ctypes.get_errno(), "")

    return execute


def _vectors(
    argv: list[bytes], env: dict[bytes, bytes]
) -> "tuple[ctypes.Array[ctypes.c_char_p], ctypes.Array[ctypes.c_char_p]]":
    pairs = [name + b"=" + value for name, value in env.items()]
    return (
        (ctypes.c_char_p * (len(argv) + 1))(*argv, None),
        (ctypes.c_char_p * (len(pairs) + 1))(*pairs, None),
    )


def _check(code: int) -> None:
    """These calls return the error and leave errno alone (posix_spawn(3))."""
    if code:
        raise OSError(code, os.strerror(code))
