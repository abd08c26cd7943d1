"""Programs, libraries and Python of the guest, chosen from unpacked packages."""

import os
import re
from collections.abc import Callable
from fnmatch import fnmatch

from agentd.image.compiler import Python
from agentd.image.tree import ImageTree
from agentd.linux import programs
from agentd.model.errors import Unavailable

AGENT = "/usr/lib/agentd"
_MAX_LINKS = 40  # as the kernel follows (path_resolution(7))
LIBRARIES = "usr/lib/x86_64-linux-gnu"
_START = f"""\
import sys

sys.path.insert(0, "{AGENT}")
from agentd.guest.main import main

sys.exit(main())
"""
# What the small root leaves out: tests, tools of developers, servers' and mail protocols, second
# implementations of what is there in C, second interfaces to XML, and what needs OpenSSL (8 MB).
_PRUNED = re.compile(
    r"(test|tests|idlelib|tkinter|turtledemo|ensurepip|venv|pydoc_data|lib2to3|unittest|_pyrepl"
    r"|config-[^/]*|__phello__|dist-packages|curses|dbm|wsgiref|xmlrpc)/.*|.*/(tests?|__pycache__)/.*"
    r"|(turtle|antigravity|this|_aix_support|_ios_support|_android_support|__hello__|pydoc|doctest"
    r"|mailbox|imaplib|smtplib|ftplib|poplib|pickletools|pstats|profile|cProfile|ssl|webbrowser"
    r"|optparse|_pydecimal|_pyio|_pydatetime|_sysconfigdata__x86_64[^/]*|pdb|bdb|trace|plistlib)\.py"
    r"|xml/(dom|sax)/.*|http/(cookiejar|server)\.py|multiprocessing/managers\.py"
    r"|asyncio/(windows_|proactor_).*|ctypes/macholib/.*|multiprocessing/popen_spawn_win32\.py"
    r"|encodings/(mac_|big5|cp(932|949|950|[78]|1[01]|27|[56]|0|12[0-4])|euc_|gb|hz|iso2022|johab|ptcp|shift_jis|koi8|hp_|kz|tis).*"
)
_PRUNED_NATIVE = re.compile(
    r"(_test|_xx|xx|_ctypes_test|_codecs_(jp|kr|cn|hk|tw|iso2022)|_multibytecodec|_curses|_dbm|_gdbm"
    r"|readline|_tkinter|_ssl|_hashlib|_lsprof|_interp|_uuid)[^/]*\.so"
)
# What the smallest root has: what the agent imports, and what a script cannot do without.
_SMALL_NATIVE = re.compile(
    r"(_ctypes|resource|termios|_queue|mmap|_asyncio|_contextvars|_multiprocessing|_posixshmem)\..*"
)
_SMALL_PRUNED = re.compile(
    r"(sqlite3|xml|html|http|email/mime|multiprocessing/dummy)/.*"
    r"|(tarfile|optparse|difflib|configparser|statistics|fractions)\.py"
    r"|encodings/(?!__init__|aliases|ascii|utf_|latin_1|idna|punycode|cp437|unicode|raw)[^/]*"
)
_LIBRARIES = (
    *("ld-linux-x86-64.so*", "libc.so*", "libm.so*", "libpthread.so*", "libdl.so*", "librt.so*"),
    *("libutil.so*", "libresolv.so*", "libz.so*", "libexpat.so*", "libffi.so*"),
)
_MORE_LIBRARIES = (
    *("libsqlite3.so*", "libbz2.so*", "liblzma.so*", "libtinfo.so*", "libmpdec.so*"),
)


def busybox(tree: str) -> ImageTree:
    """Return the program, and a link for each of its applets. Raises Unavailable."""
    made, program = ImageTree(), os.path.join(tree, "usr/bin/busybox")
    made.copy(program, "/usr/bin/busybox")
    try:
        applets = programs.answer([program, "--list-full"], 30).split()
    except OSError as error:
        raise Unavailable(f"{program} does not run: {error}") from error
    for path in applets:
        place = "/" + (path if path.startswith("usr/") else f"usr/{path}")
        if place not in ("/usr/bin/busybox", "/usr/linuxrc"):
            made.link(place, "/usr/bin/busybox")
    return made


def python(tree: str, version: str, *, small: bool) -> ImageTree:
    """Return it without sources: half the size, and quicker to import."""
    made = ImageTree()
    _program(made, tree, version)
    folder = os.path.join(tree, f"usr/lib/python{version}")
    top = f"/usr/lib/python{version}"
    modules = _sources(tree, folder, lambda inner: _kept(inner, small))
    named = {f"{top}/{name}": modules[name] for name in modules}
    # Without docstrings and assertions: a fifth less.
    for path, data in Python(tree, version).compile(named, optimize=2).items():
        made.file(path + "c", data)
    # It looks for this folder when it starts, and complains when there is none.
    made.folder(f"{top}/lib-dynload")
    for name in sorted(os.listdir(os.path.join(folder, "lib-dynload"))):
        if _SMALL_NATIVE.fullmatch(name) if small else not _PRUNED_NATIVE.fullmatch(name):
            made.copy(os.path.join(folder, "lib-dynload", name), f"{top}/lib-dynload/{name}")
    return made


def whole_python(tree: str, version: str) -> ImageTree:
    """Return it with sources, and byte code beside them."""
    made = ImageTree()
    _program(made, tree, version)
    folder, top = os.path.join(tree, f"usr/lib/python{version}"), f"/usr/lib/python{version}"
    made.copy(folder, top, lambda inner: "__pycache__" not in inner)
    sources = _sources(tree, folder, lambda _: True)
    code = Python(tree, version).compile({f"{top}/{name}": sources[name] for name in sources})
    tag = f"cpython-{version.replace('.', '')}"
    for path, data in code.items():
        parent, name = os.path.split(path)
        made.file(f"{parent}/__pycache__/{name[:-3]}.{tag}.pyc", data)
    return made


def libraries(tree: str, *, small: bool) -> ImageTree:
    """Return the loader and the shared libraries of the programs and modules chosen above."""
    made = ImageTree()
    patterns = _LIBRARIES if small else _LIBRARIES + _MORE_LIBRARIES
    for name in sorted(os.listdir(os.path.join(tree, LIBRARIES))):
        if any(fnmatch(name, pattern) for pattern in patterns):
            made.copy(os.path.join(tree, LIBRARIES, name), f"/{LIBRARIES}/{name}")
    _loader(made)
    return made


def whole_libraries(tree: str) -> ImageTree:
    made = ImageTree()
    made.copy(os.path.join(tree, LIBRARIES), f"/{LIBRARIES}")
    _loader(made)
    return made


def bash(tree: str) -> ImageTree:
    made = ImageTree()
    made.copy(os.path.join(tree, "usr/bin/bash"), "/usr/bin/bash")
    return made


def agent(tree: str, version: str, sources: dict[str, bytes]) -> ImageTree:
    """Return the agent's byte code, of ``sources`` as ``agentd.guest.bundle`` gives them."""
    files = {f"{AGENT}/{name}": sources[name] for name in sources if name != "__main__.py"}
    files[f"{AGENT}/start.py"] = _START.encode()
    made = ImageTree()
    for path, data in Python(tree, version).compile(files, optimize=2).items():
        made.file(path + "c", data)
    return made


def init(python_version: str, release: str, modules: list[str]) -> ImageTree:
    with open(os.path.join(os.path.dirname(__file__), "init.sh"), encoding="utf-8") as file:
        text = file.read()
    for name, value in {
        "@RELEASE@": release,
        "@MODULES@": " ".join(modules),
        "@PYTHON@": f"/usr/bin/python{python_version}",
        "@AGENT@": AGENT,
    }.items():
        text = text.replace(name, value)
    made = ImageTree()
    made.file("/init", text.encode(), 0o755)
    made.link("/usr/sbin/init", "../../init")
    return made


def _program(made: ImageTree, tree: str, version: str) -> None:
    made.copy(os.path.join(tree, f"usr/bin/python{version}"), f"/usr/bin/python{version}")
    made.link("/usr/bin/python3", f"python{version}")
    made.link("/usr/bin/python", "python3")


def _loader(made: ImageTree) -> None:
    made.link("/usr/lib64/ld-linux-x86-64.so.2", f"/{LIBRARIES}/ld-linux-x86-64.so.2")


def _sources(tree: str, folder: str, keep: Callable[[str], bool]) -> dict[str, bytes]:
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            inner = os.path.relpath(path, folder)
            if name.endswith(".py") and keep(inner):
                with open(_within(tree, path), "rb") as file:
                    found[inner] = file.read()
    return found


def _within(tree: str, path: str) -> str:
    """Follows links as the guest would: what is absolute begins at the tree, not at our root."""
    for _ in range(_MAX_LINKS):
        if not os.path.islink(path):
            break
        target = os.readlink(path)
        parent = tree if target.startswith("/") else os.path.dirname(path)
        path = os.path.normpath(os.path.join(parent, target.lstrip("/")))
    return path


def _kept(inner: str, small: bool) -> bool:
    return not (_PRUNED.fullmatch(inner) or (small and _SMALL_PRUNED.fullmatch(inner)))


def certificates(tree: str) -> ImageTree:
    """Return one file of all certificates, as update-ca-certificates(8) would write it."""
    made, found = ImageTree(), []
    top = os.path.join(tree, "usr/share/ca-certificates")
    for parent, _, names in os.walk(top):
        found += [os.path.join(parent, name) for name in names if name.endswith(".crt")]
    parts = []
    for path in sorted(found):
        with open(path, "rb") as file:
            parts.append(file.read())
    made.file("/etc/ssl/certs/ca-certificates.crt", b"".join(parts))
    made.link("/usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt")
    made.link("/usr/lib/ssl/certs", "/etc/ssl/certs")
    return made
