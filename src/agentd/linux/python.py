"""Starting agentd's own isolated interpreters: next to no environment, nothing inherited."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Sequence

#: A Python whose libpython lies outside of the loader's paths does not start without it.
LOADER = ("LD_LIBRARY_PATH",)
#: Neither the caller's environment nor its site-packages; text is UTF-8 whatever the locale.
ISOLATED = ("-I", "-S", "-E", "-X", "utf8")
# The first number above those that are passed.
_FREE = 10
_PACKAGE_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))


def command(module: str, *words: str, libraries: Sequence[str] = ()) -> list[str]:
    """Returns what runs ``module.main(*words)`` by this interpreter. ``libraries`` are folders that
    it may import from beside the standard library's and agentd.

    ``-I -S -E`` keeps the caller's site-packages and environment out. It is not spared where memory
    runs out, as agentd may be.
    """
    paths = f"sys.path[:0] = [{_PACKAGE_ROOT!r}]; sys.path += {list(libraries)!r}"
    unspared = "from agentd.linux.process import be_spared_no_more; be_spared_no_more()"
    code = f"import sys; {paths}; {unspared}; from {module} import main; main(*sys.argv[1:])"
    return [sys.executable, *ISOLATED, "-c", code, *words]


def environment() -> dict[str, str]:
    """Returns all that it is given of ours: where the loader finds the libraries of this Python."""
    return {name: os.environ[name] for name in LOADER if name in os.environ}


def start(module: str, passed: Sequence[socket.socket | int], libraries: Sequence[str] = ()) -> int:
    """Runs ``module.main()`` with ``passed`` as descriptors 3, 4, ...; returns its pid.
    ``libraries`` are as for ``command``. A session of its own keeps the terminal's Ctrl-C out.
    Raises OSError.
    """
    argv = command(module, libraries=libraries)
    # Above the numbers they will get, so that no dup2 overwrites another's source.
    sources: list[int] = []
    try:
        for each in passed:
            sources.append(_above(each))
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(sources, 3)),
        ]
        return os.posix_spawn(
            *(argv[0], argv, environment()), file_actions=actions, setsid=True, setsigmask=[]
        )
    finally:
        for fd in sources:
            os.close(fd)


def _above(fd: socket.socket | int) -> int:
    """Duplicate it to a number that no descriptor is to get. Raises OSError."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FREE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error  # of so few there is none
