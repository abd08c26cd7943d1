"""The guest's files: busybox, the Python that runs the tests, what it imports, and the checks."""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.vm.archive import Archive
from tests.vm.debian import Unavailable, busybox, cache_dir

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent.parent / "src"
CODE = "/usr/lib/agentd-tests"  # in the guest, on PYTHONPATH
PYTHON = os.path.realpath(
    f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
)
_APPLETS = (
    "chroot",
    "dd",
    "mkdir",
    "mount",
    "poweroff",
    "sh",
    "sleep",
    "timeout",
    "true",
    "umount",
)
_MERGED = ("bin", "lib", "lib64", "sbin")
_PRUNED = re.compile(
    r"config-.*|curses|dist-packages|ensurepip|idlelib|lib2to3|pydoc_data|site-packages|sqlite3"
    r"|tests?|tkinter|turtledemo|unittest|_pyrepl"
    r"|(_codecs_|_curses|_dbm|_gdbm|_sqlite3|_test|_tkinter|_xx|readline|xx).*\.so"
)
_SOURCES = (".py", ".so", f".{sys.implementation.cache_tag}.pyc")


def initramfs() -> bytes:
    """Two archives in a row: what seldom changes, from the cache, and what is under test."""
    return base() + _under_test()


def base() -> bytes:
    """Busybox, Python and its libraries: an archive without an init."""
    files = dict(_base_files())
    digest = hashlib.sha256()
    for path, source in files.items():
        status = os.stat(source)
        digest.update(f"{path}\0{source}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    cached = cache_dir() / f"base-{digest.hexdigest()[:16]}.cpio"
    if not cached.exists():
        partial = cached.with_suffix(f".{os.getpid()}")
        partial.write_bytes(_archive(files))
        partial.rename(cached)
    return cached.read_bytes()


def _archive(files: dict[str, str]) -> bytes:
    archive = Archive()
    for name in _MERGED:
        archive.directory(f"/usr/{name}")
        archive.symlink(f"/{name}", f"usr/{name}")
    for name in _APPLETS:
        archive.symlink(f"/usr/bin/{name}", "busybox")
    for path, source in files.items():
        archive.copy(source, _merged(path))
    return archive.finish()


def _base_files() -> Iterator[tuple[str, str]]:
    """Path in the guest, path here."""
    yield "/usr/bin/busybox", str(busybox())
    stdlib = sysconfig.get_path("stdlib")
    modules = list(_python_files(stdlib))
    yield from zip(modules, modules, strict=True)
    package = _msgspec()
    native = [PYTHON, *(path for path in modules if path.endswith(".so"))]
    for path in _python_files(package):
        yield f"{CODE}/msgspec/{os.path.relpath(path, package)}", path
        if path.endswith(".so"):
            native.append(path)
    yield PYTHON, PYTHON
    for library in sorted(_libraries(native)):
        yield library, library


def _under_test() -> bytes:
    archive = Archive()
    package = str(SOURCE / "agentd")
    for path in _python_files(package):
        archive.copy(path, f"{CODE}/agentd/{os.path.relpath(path, package)}")
    for check in sorted(HERE.glob("guest/*.py")):
        archive.copy(str(check), f"{CODE}/{check.name}")
    init = (HERE / "guest" / "init").read_text().replace("@PYTHON@", PYTHON)
    archive.file("/init", init.replace("@CODE@", CODE).encode(), 0o755)
    return archive.finish()


def _python_files(folder: str) -> Iterator[str]:
    """What this interpreter can import, its compiled form included: compiling costs most there."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _PRUNED.fullmatch(name))
        for name in sorted(names):
            if name.endswith(_SOURCES) and not _PRUNED.fullmatch(name):
                yield f"{parent}/{name}"


def _msgspec() -> str:
    import msgspec

    return os.path.dirname(os.path.realpath(msgspec.__file__))


def _libraries(programs: list[str]) -> set[str]:
    """Shared libraries, the loader among them, that the dynamic linker would load (ldd(1))."""
    done = subprocess.run(
        ["ldd", *programs],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,  # it also fails for a module that is built for nothing here
    )
    found = set(re.findall(r"^\s*(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE))
    if not found:
        raise Unavailable(f"ldd cannot tell the libraries of {PYTHON}: {done.stderr.strip()}")
    return found


def _merged(path: str) -> str:
    """Where the link /lib of a merged /usr leads."""
    top = path.split("/", 2)[1]
    return f"/usr{path}" if top in _MERGED else path
