"""Makes a runtime in an empty folder, and tells one from another."""

import glob
import marshal
import os
import py_compile

from agentd.image import cache, digest
from agentd.image.runtime import start
from agentd.image.runtime.parts import LOADER, PYTHON, Inventory, archived, cut, parts, run_python
from agentd.model.errors import Unavailable

#: Changes with how a runtime is made of the same files.
FORMAT = 2
# Without docstrings and assertions.
_OPTIMIZE = 2
_HERE = os.path.dirname(os.path.abspath(__file__))
_CHECK = os.path.join(_HERE, "checking.py")

#: Of a file: inode, size, time of its content and of its change.
Stamps = dict[str, list[int]]


def identify(have: Inventory) -> tuple[str, Stamps]:
    """Return the digest of what a runtime is made of, and the stamps of the files it is from."""
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
    code: start.Code = {}
    for name, part in parts(have):
        module = archived(name, have.library)
        if module:
            compiled = compile(part.data, name, "exec", dont_inherit=True, optimize=_OPTIMIZE)
            code[module] = name.endswith("/__init__.py"), marshal.dumps(compiled)
            continue
        path = os.path.join(new, name)
        cache.make_folders(os.path.dirname(path))
        with open(path, "wb") as file:
            file.write(part.data if name.endswith(".py") else cut(name, part.data))
        if name.endswith(".py"):
            # Without times and sources.
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            py_compile.compile(
                path, path + "c", name, doraise=True, optimize=_OPTIMIZE, invalidation_mode=mode
            )
            os.unlink(path)
            path += "c"
        os.chmod(path, cache.OPEN if part.executable else 0o644)
    path = os.path.join(new, start.CODE)
    with open(path, "wb") as file:
        file.write(marshal.dumps(code))
    os.chmod(path, 0o644)


def check(new: str) -> None:
    """Run it: all that it loads must be its own. Raises Unavailable."""
    loader = [os.path.join(new, LOADER), "--inhibit-cache", "--library-path", f"{new}/lib"]
    used = run_python([*loader, os.path.join(new, PYTHON)], [_CHECK, new]).splitlines()
    # sys.path names an archive of the standard library, which is not there.
    foreign = sorted(path for path in used if not path.startswith(new) and os.path.exists(path))
    if foreign:
        raise Unavailable(
            "this Python cannot be taken along: it needs files of this host",
            cause=", ".join(foreign[:3]),
            remediation="run agentd with a Python of a distribution, pyenv or uv",
        )


def stamp(path: str) -> list[int]:
    """Return what changes with the content: no program can set the time of change (ctime)."""
    status = os.lstat(path)
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
