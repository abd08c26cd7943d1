"""Root file systems of whole images, made of what is installed here: no registry is asked.

``pulled(kind)`` has agentd pull one into the cache of the environment:

``busybox``   a static busybox and nothing else: no library, no loader, no bash
``musl``      the same beside musl's libc and its loader, as Alpine has them: what tests run most,
              and ``libc``, are programs of that (``tests/data/musl.c``)
``debian``    Debian's essential programs with their libraries, merged /usr; no Python
``python``    the same with /usr/bin/python3 and its library, for what only a language can ask
``clients``   the same with some programs that ask others, of ``_CLIENTS``, which has more kinds

In each, commands run as ``sandbox`` (1000), as they do without an image.
"""

import contextlib
import functools
import glob
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import pytest
from tests.oci import BUSYBOX, Layout, file, folder, is_static, layer, link

from agentd.image import store
from agentd.image.oci.pull import pull

Entry = tuple[tarfile.TarInfo, bytes]

KINDS = ("busybox", "musl", "debian", "python")
#: Of these, those whose programs are busybox's.
SMALL = ("busybox", "musl")
_OF_MUSL = ("cat", "libc", "sleep", "true")
_SOURCE = Path(__file__).parent / "data/musl.c"
_PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils"),
    *(
        "findutils",
        "grep",
        "gzip",
        "hostname",
        "libc-bin",
        "login",
        "mawk",
        "ncurses-bin",
        "passwd",
    ),
    *("procps", "sed", "tar", "util-linux"),
)
#: Programs, with all that their packages have; but for the first with what those depend on, too.
_CLIENTS = {
    "clients": ("curl", "wget", "git"),
    "every-client": (
        *("curl", "wget", "git", "pip", "node", "npm", "java", "javac"),
        *("apt-get", "dpkg"),
    ),
    "clients-of-registries": ("curl", "pip", "node", "npm", "apt-get", "dpkg"),
}
#: What no package has: what makes Java start sooner, and an npm that has updated itself.
_MADE = ("/usr/lib/jvm/*/lib/server/*.jsa", "/usr/lib/node_modules/npm/**")
_MERGED = ("bin", "sbin", "lib", "lib64")
_LEFT_OUT = re.compile(
    r"/usr/share/(doc|man|locale|info|lintian|bash-completion)|/usr/lib/(systemd|jvm/[^/]+/jmods)"
)
_NAME = re.compile(r"(?:^|[,|]) *([a-z0-9][a-z0-9.+-]+)")  # of a list of packages
_LIBRARY = re.compile(r"(/\S+) \(0x[0-9a-f]+\)")
_CONFIG = {"User": "sandbox"}
_USERS = (
    folder("etc"),
    file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nsandbox:x:1000:1000::/home/sandbox:/bin/sh\n"),
    file("etc/group", b"root:x:0:\nsandbox:x:1000:\n"),
)


#: make test-images and test-images-vm: the root of these walls' sandboxes is of this image.
IMAGE = os.environ.get("AGENTD_TEST_IMAGE", "")
WALLS = ("linux", "oci", "gvisor", "qemu")


@contextlib.contextmanager
def of_the_run() -> Iterator[str]:
    """``stored(IMAGE)``, or an empty name."""
    with stored(IMAGE) if IMAGE else contextlib.nullcontext("") as name:
        yield name


@contextlib.contextmanager
def stored(kind: str, *more: Entry) -> Iterator[str]:
    """``pulled`` in a store of its own."""
    with own_store():
        yield pulled(kind, *more)


@contextlib.contextmanager
def own_store() -> Iterator[None]:
    """Have images in a store that is gone afterwards. Machine images are those of all: to build
    one takes a minute."""
    machines = store.default_folder()
    with (
        tempfile.TemporaryDirectory(prefix="agentd-images-") as cache,
        pytest.MonkeyPatch.context() as patch,
    ):
        os.makedirs(machines, exist_ok=True)
        os.mkdir(f"{cache}/agentd", 0o700)
        os.symlink(machines, f"{cache}/agentd/images")
        patch.setenv("XDG_CACHE_HOME", cache)
        yield


def name_of(kind: str) -> str:
    return f"agentd-test-{kind}"


def pulled(kind: str, *more: Entry) -> str:
    """Its name, with ``more`` in it; skips, by name, where what it is made of is not installed."""
    for program in ("skopeo", "umoci"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    name = name_of(kind)
    with tempfile.TemporaryDirectory(prefix="agentd-rootfs-") as place:
        made = Layout(Path(place, "layout"))
        pull(made.add([layer(*_entries(kind), *more)], _CONFIG, packed=""), name)
    return name


def _entries(kind: str) -> Iterator[Entry]:
    if kind == "busybox":
        return _busybox()
    if kind in _CLIENTS:
        return _of_clients(_CLIENTS[kind], dependencies=kind != "clients")
    return _musl() if kind == "musl" else _debian(python=kind == "python")


def _busybox(without: Sequence[str] = ()) -> Iterator[Entry]:
    if not is_static(BUSYBOX):
        pytest.skip("busybox-static is not installed")
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    yield folder("bin")
    yield file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    yield from (
        link(f"bin/{name}", "busybox")
        for name in listed.stdout.split()
        if name not in ("busybox", *without)
    )
    yield from _USERS


def _musl() -> Iterator[Entry]:
    loader = f"lib/ld-musl-{os.uname().machine}.so.1"
    compiler = shutil.which("musl-gcc")
    if compiler is None or not os.path.exists(f"/{loader}"):
        pytest.skip("musl-tools is not installed")
    with tempfile.TemporaryDirectory(prefix="agentd-musl-") as place:
        program = Path(place, "program")
        argv = [compiler, "-O1", "-pthread", "-o", str(program), str(_SOURCE)]
        subprocess.run(argv, check=True, timeout=120)
        yield from _busybox(_OF_MUSL)
        yield folder("lib")
        yield file(loader, Path(f"/{loader}").read_bytes(), 0o755)
        yield from (file(f"bin/{name}", program.read_bytes(), 0o755) for name in _OF_MUSL)


def _of_clients(names: Sequence[str], *, dependencies: bool) -> Iterator[Entry]:
    found = [shutil.which(name, path="/usr/bin:/usr/sbin") for name in names]
    programs = [path for path in found if path is not None]
    argv = ["dpkg-query", "-S", *map(os.path.realpath, programs)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    packages = {line.partition(":")[0] for line in told.splitlines()}
    if dependencies:
        packages = _with_dependencies(packages)
    files = {path for name in packages for path in _files_of(name)}
    if dependencies:
        found = (path for each in _MADE for path in glob.glob(each, recursive=True))
        files |= {path for path in found if os.path.isfile(path)}
    return _debian(python=True, more={*programs, *files})


def _with_dependencies(packages: set[str]) -> set[str]:
    """Those of them that are installed, in place of names that they provide, too."""
    form = "${Package}\t${Provides}\t${Pre-Depends},${Depends}\n"
    argv = ["dpkg-query", "-W", "-f", form]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    rows = [[_NAME.findall(field) for field in row.split("\t")] for row in told.splitlines()]
    needs = {name: depends for (name,), _, depends in rows}
    providers = {name: own for (own,), provides, _ in rows for name in provides}
    found: set[str] = set()
    left = list(packages)
    while left:
        name = left.pop()
        name = name if name in needs else providers.get(name, "")
        if name and name not in found:
            found.add(name)
            left += needs[name]
    return found


def _debian(*, python: bool, more: Collection[str] = ()) -> Iterator[Entry]:
    if shutil.which("dpkg-query") is None:
        pytest.skip("dpkg is not installed: no Debian")
    paths = {path for name in _PACKAGES for path in _files_of(name)} | set(more)
    if python:
        paths |= _python()
    paths |= {library for path in paths for library in _libraries(path)}
    yield folder("usr")
    for name in _MERGED:
        yield folder(f"usr/{name}")
        yield link(name, f"usr/{name}")
    made = {"/usr", *(f"/usr/{name}" for name in _MERGED)}
    for path in sorted(_at_home(paths)):
        for above in reversed(Path(path).parents):
            if str(above) not in {"/", *made}:
                made.add(str(above))
                yield folder(str(above)[1:])
        if os.path.islink(path):
            yield link(path[1:], os.readlink(path))
        else:
            about = os.stat(path)  # with its time: by that Python knows what it has compiled
            data, when = Path(path).read_bytes(), int(about.st_mtime)
            yield file(path[1:], data, about.st_mode & 0o755, mtime=when)
    yield link("usr/bin/sh", "dash")
    yield from _USERS[1:] if "/etc" in made else _USERS
    yield folder("root", 0o700)


def _at_home(paths: set[str]) -> set[str]:
    """Each by its path behind the links of a merged /usr, with all that a link of it leads to."""
    found: set[str] = set()
    left = list(paths)
    while left:
        folder_, name = os.path.split(left.pop())
        path = os.path.join(os.path.realpath(folder_), name)
        if path not in found and os.path.isfile(path):
            found.add(path)
            if os.path.islink(path):
                left.append(os.path.normpath(os.path.join(folder_, os.readlink(path))))
    return found - {"/usr/bin/sh", "/etc/passwd", "/etc/group"}


@functools.cache
def _files_of(package: str) -> tuple[str, ...]:
    done = subprocess.run(
        ["dpkg-query", "-L", package], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{package} is not installed")
    return tuple(
        path
        for path in done.stdout.splitlines()
        if path.startswith("/")
        and os.path.isfile(path)
        and not _LEFT_OUT.match(path)
        and os.access(path, os.R_OK)
    )


@functools.cache
def _libraries(path: str) -> tuple[str, ...]:
    """Those that its loader finds, and the loader."""
    with open(path, "rb") as opened:
        if opened.read(4) != b"\x7fELF":
            return ()
    done = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
    return tuple(_LIBRARY.findall(done.stdout))


def _python() -> set[str]:
    code = "import sysconfig; print(sysconfig.get_path('stdlib'))"
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", code], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("there is no /usr/bin/python3")
    found = {"/usr/bin/python3"}
    for base, names, files in os.walk(done.stdout.decode().strip()):
        left_out = {"test", "dist-packages", "site-packages", "config-3"}
        names[:] = [name for name in names if name not in left_out and "config-" not in name]
        found |= {os.path.join(base, name) for name in files}
    return {path for path in found if os.path.isfile(path)}
