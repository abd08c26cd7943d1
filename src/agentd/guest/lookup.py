"""Where a program lies: execvp(3)'s search, in two halves, of which the first can be done ahead."""

import errno
import os
import stat
from collections.abc import Callable

# Where a program is looked up when the environment names no PATH.
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path(env: dict[bytes, bytes]) -> bytes:
    return env.get(b"PATH", DEFAULT_PATH)


# Longer names, and longer elements of a PATH, are not looked for (<limits.h>).
NAME_MAX, PATH_MAX = 255, 4096
# A place that has nothing of the name: the next one may.
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})


class SearchPath:
    """The paths at which a name may be found, in order, each with its error; 0 for none yet.

    ``exact``: a path, not a name to look for.
    """

    def __init__(self, found: list[tuple[bytes, int]], *, exact: bool = False) -> None:
        self.found = found
        self.exact = exact


def places(name: bytes, path: bytes) -> SearchPath:
    """Does the first half of execvp(3)'s search. A name with a slash is taken as it is."""
    if b"/" in name:
        return SearchPath([(name, 0)], exact=True)
    if len(name) > NAME_MAX:
        return SearchPath([(name, errno.ENAMETOOLONG)])
    found = []
    for folder in path.split(b":"):
        if len(folder) < PATH_MAX:
            # An empty element is the working directory (POSIX 8.3), and the name stays bare.
            program = folder + b"/" + name if folder else name
            found.append((program, _look(program)))
    return SearchPath(found)


def _look(program: bytes) -> int:
    """Attempts are dear: what execve(2) would say, where looking tells that already."""
    try:
        return 0 if stat.S_ISREG(os.stat(program).st_mode) else errno.EACCES
    except OSError as error:
        return error.errno or errno.ENOENT


def try_each(places: SearchPath, attempt: Callable[[bytes], int]) -> int:
    """Does the second half. EACCES is remembered, what is missing is passed over, anything else
    ends the search. Raises OSError: EACCES if that was met, else what the last place said."""
    denied, code = False, errno.ENOENT
    for program, known in places.found:
        code = known
        if not known:
            try:
                return attempt(program)
            except OSError as error:
                code = error.errno or errno.EINVAL
        if places.exact or code not in _MISSING | {errno.EACCES}:
            raise OSError(code, "")
        denied = denied or code == errno.EACCES
    raise OSError(errno.EACCES if denied else code, "")


def first_executable(name: bytes, path: bytes, attempt: Callable[[bytes], int]) -> int:
    """Start ``name`` as execvp(3) does. Raises OSError."""
    return try_each(places(name, path), attempt)
