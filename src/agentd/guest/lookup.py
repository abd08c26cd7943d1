"""Where a program lies: execvp(3)'s search, in two halves, of which the first can be done ahead."""

import errno
import os
import stat
from collections.abc import Callable

# Where a program is looked up when the environment names no PATH.
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path(env: dict[bytes, bytes]) -> bytes:
    return env.get(b"PATH", DEFAULT_PATH)


class Places:
    """Where a name may be found: ``paths``, of which the first that works counts."""

    def __init__(self, paths: list[bytes], *, exact: bool, denied: bool = False) -> None:
        self.paths = paths
        # A path, not a name to look for: why it fails is the answer.
        self.exact = exact
        # Something has the name and cannot be executed.
        self.denied = denied


def places(name: bytes, path: bytes) -> Places:
    """The first half of execvp(3)'s search. A name with a slash is taken as it is."""
    if b"/" in name:
        return Places([name], exact=True)
    found = Places([], exact=False)
    for folder in path.split(b":"):
        # An empty element is the working directory (POSIX 8.3).
        program = (folder or b".") + b"/" + name
        try:
            # Attempts are dear: look first.
            if stat.S_ISREG(os.stat(program).st_mode):
                found.paths.append(program)
            else:
                found.denied = True
        except PermissionError:
            found.denied = True
        except OSError:
            continue
    return found


def try_each(found: Places, attempt: Callable[[bytes], int]) -> int:
    """The second half. EACCES is remembered, what is missing is passed over, anything else ends
    the search. Raises OSError.
    """
    if found.exact:
        return attempt(found.paths[0])
    denied = found.denied
    for program in found.paths:
        try:
            return attempt(program)
        except PermissionError:
            denied = True
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise OSError(errno.EACCES if denied else errno.ENOENT, "")


def first_executable(name: bytes, path: bytes, attempt: Callable[[bytes], int]) -> int:
    """Start ``name`` as execvp(3) does. Raises OSError."""
    return try_each(places(name, path), attempt)
