"""Makes a runtime in an empty folder, and tells one from another."""

import contextlib
import glob
import os
import py_compile

from agentd.image import digest
from agentd.image.runtime.parts import LOADER, PYTHON, Inventory, cut, parts, run_python
from agentd.model.errors import Unavailable

#: Changes with how a runtime is made of the same files.
FORMAT = 1
#: Whatever the umask: sandboxes have other users.
OPEN = 0o755
_HERE = os.path.dirname(os.path.abspath(__file__))
# Run in a new one: the agent; which files of code it has then, and where it looks for more.
_CHECK = """
import sys
sys.path.insert(0, sys.argv[1])
import agentd.guest.main, agentd.guest.agent
agentd.guest.agent.preload()
with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
    lines = [line.split(None, 5) for line in file]
print(*{line[5].strip() for line in lines if "x" in line[1] and "/" in line[-1]}, sep=chr(10))
print(*sys.path, sep=chr(10))
print(*(getattr(m, "__file__", None) or sys.path[0] for m in sys.modules.values()), sep=chr(10))
"""

#: Of a file: inode, size, time of its content and of its change.
Stamps = dict[str, list[int]]


def identify(have: Inventory) -> tuple[str, Stamps]:
    """The digest of all that a runtime is made of, and the stamps of the files that it is from."""
    shares = {"": f"{FORMAT} {have.version} {have.library}"}
    stamps = {path: stamp(path) for path in glob.glob(os.path.join(_HERE, "*.py"))}
    for name, part in parts(have):
        if part.path is not None:
            stamps[part.path] = stamp(part.path)
            # A file that comes or goes changes its folder.
            if name.startswith("agentd/"):
                folder = os.path.dirname(part.path)
                stamps[folder] = stamp(folder)
        shares[name] = f"{part.executable} {digest.of_parts({'': part.data})}"
    return digest.of_parts(shares), stamps


def fill(new: str, have: Inventory) -> None:
    for name, part in parts(have):
        path = os.path.join(new, name)
        make_folders(os.path.dirname(path))
        with open(path, "wb") as file:
            file.write(part.data if name.endswith(".py") else cut(name, part.data))
        if name.endswith(".py"):
            # Without docstrings and assertions, times and sources.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(
                path, path + "c", name, doraise=True, optimize=2, invalidation_mode=mode
            )
            os.unlink(path)
            path += "c"
        os.chmod(path, OPEN if part.executable else 0o644)


def check(new: str) -> None:
    """Run it: all that it loads must be its own. Raises Unavailable."""
    start = [os.path.join(new, LOADER), "--inhibit-cache", "--library-path", f"{new}/lib"]
    used = run_python([*start, os.path.join(new, PYTHON)], ["-c", _CHECK, new]).splitlines()
    # sys.path names an archive of the standard library, which is not there.
    foreign = sorted(path for path in used if not path.startswith(new) and os.path.exists(path))
    if foreign:
        raise Unavailable(
            "this Python cannot be taken along: it needs files of this host",
            cause=", ".join(foreign[:3]),
            remediation="run agentd with a Python of a distribution, pyenv or uv",
        )


def stamp(path: str) -> list[int]:
    """Changes with the content: the time of change (ctime) cannot be set by a program."""
    status = os.lstat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def make_folders(path: str) -> None:
    if os.path.isdir(path):
        return
    make_folders(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
        os.chmod(path, OPEN)
