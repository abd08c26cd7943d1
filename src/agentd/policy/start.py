"""A worker's start: the engine's library is loaded, or what is missing for it is told.

regopy's library names libatomic.so.1 among what it needs, and uses no symbol of it. It comes with a
C compiler, so minimal systems have none (Debian's, Ubuntu's and python:3-slim's images). Where it
is missing, the worker starts itself once more with a folder in which that name is a link to the C
library. The real one is taken wherever there is one. The folder goes once the library is loaded, or
with the worker, by its owner.
"""

import ctypes
import glob
import os
import shutil
import socket
import sys
import tempfile
from typing import NoReturn

import msgspec

from agentd.model import install
from agentd.policy.frames import EngineMissing, receive, send
from agentd.policy.workplace import PREFIX

PATH = "LD_LIBRARY_PATH"  # the loader reads it once, when a program starts
#: Where temporary files are. Its owner has found it: who looks for it himself, and is killed as he
#: does, leaves a file that nobody knows.
PLACE = "TMPDIR"
STAND_IN = "AGENTD_POLICY_STAND_IN"  # the folder, for the worker that was started again
_ATOMIC = "libatomic.so.1"
# Library -> its package, as apt-get and as dnf call it.
_PACKAGES = {
    _ATOMIC: ("libatomic1", "libatomic"),
    "libstdc++.so.6": ("libstdc++6", "libstdc++"),
    "libgcc_s.so.1": ("libgcc-s1", "libgcc"),
    "libz.so.1": ("zlib1g", "zlib"),
}


class _Found(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def main() -> None:
    folder = os.environ.get(STAND_IN)
    try:
        from agentd.policy import worker
    except (ImportError, OSError) as error:
        if _named(error) == _ATOMIC and folder is None:
            _refuse(_start_again(error))
        _refuse(_missing(error))
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    worker.main(stand_in=folder is not None)


def _start_again(error: Exception) -> EngineMissing:
    """Does not return, unless that cannot be had."""
    folder = None
    try:
        folder = tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=os.environ.get(PLACE))
        os.symlink(_c_library(), os.path.join(folder, _ATOMIC))
        paths = [folder, *filter(None, [os.environ.get(PATH)])]
        env = {**os.environ, STAND_IN: folder, PATH: ":".join(paths)}
        os.execve(sys.executable, sys.orig_argv, env)  # noqa: S606  (what its owner started)
    except OSError as failure:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return _missing(error, f", and nothing could be put in its place: {failure}")


def place() -> str | None:
    """Return where temporary files are; None where nothing can be written."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return None


def sweep(pid: int) -> None:
    """Removes what a worker that was killed as it started has left; it is gone already."""
    base = place()
    if base is None:  # and nothing was left
        return
    for folder in glob.glob(glob.escape(os.path.join(base, _prefix(pid))) + "*"):
        shutil.rmtree(folder, ignore_errors=True)


def _prefix(pid: int) -> str:
    return f"{PREFIX}{pid}-"


def _c_library() -> str:
    """Return the path of the one that this process has. Raises OSError."""
    library, found = ctypes.CDLL(None), _Found()
    if not library.dladdr(ctypes.cast(library.getpid, ctypes.c_void_p), ctypes.byref(found)):
        raise OSError("the loader does not say where the C library is")
    return os.path.realpath(os.fsdecode(found.file))


def _named(error: Exception) -> str:
    """Return the library that the loader did not find, as it says: "NAME: cannot open shared
    ..."."""
    return str(error).partition(":")[0]


def _missing(error: Exception, more: str = "") -> EngineMissing:
    name = _named(error)
    if name in _PACKAGES:
        debian, fedora = _PACKAGES[name]
        fix = f"apt-get install {debian}, or dnf install {fedora}"
        return EngineMissing(f"{name} is missing{more}", fix)
    if isinstance(error, ModuleNotFoundError):
        return EngineMissing(
            f"the Python package {error.name} is missing", install.command("regopy")
        )
    return EngineMissing(str(error)[:500], install.command("--force-reinstall", "regopy"))


def _refuse(missing: EngineMissing) -> NoReturn:
    """Answers everything so, as long as its owner asks."""
    answer = b"!" + msgspec.json.encode(missing)
    with socket.socket(fileno=0) as stream:
        while receive(stream) is not None:
            send(stream, answer)
    os._exit(0)
