"""Debian packages, downloaded and unpacked without being installed, and without root.

apt checks them: the release file's signature, the index's digest in it, the package's in that.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agentd.image import apt, distribution
from agentd.image.digest import of_file
from agentd.image.distribution import ELSEWHERE
from agentd.image.merged import is_merged, merge
from agentd.linux import programs
from agentd.model.errors import Unavailable
from agentd.model.units import counted

_SECONDS = 600
_NAMED = 3  # packages that an error names
_KEPT = ("dump", "--format", "%v%n", "Dir::Cache::pkgcache")
#: Options of apt-cache that say where its index is kept; none where it keeps one by itself.
Index = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """A version of a package, as apt's signed index describes it."""

    name: str
    version: str
    sha256: str
    depends: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.sha256[:16]}"


def lists_stamp(folder: str | None = None) -> str:
    """Changes when ``apt-get update`` brings news; empty without apt."""
    folder = folder or apt.lists()
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.stat().st_mtime_ns) for e in entries if e.is_file())
    except OSError:
        return ""
    from hashlib import sha256

    return sha256(repr(found).encode()).hexdigest()


def refresh() -> None:
    """Look up what Debian's archive has, where that is not this machine's. Raises Unavailable."""
    with apt.updating() as wanted:
        if wanted:
            _run(["apt-get", "update"], "/")


@contextlib.contextmanager
def indexed(cache: str) -> Iterator[Index]:
    """Let apt keep its index of what it knows in the cache until the end of the block, where it
    keeps none, as it is told to in Docker's images: each call would make it anew, for a second."""
    if not shutil.which("apt-config") or _run(["apt-config", *_KEPT], "/", check=False).strip():
        yield ()
        return
    os.makedirs(cache, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".index-") as folder:
        yield ("-o", f"Dir::Cache::pkgcache={folder}/pkgcache.bin")


def show(names: Iterable[str], index: Index = ()) -> dict[str, Package]:
    """Return the candidate versions of those names that apt knows. Raises Unavailable."""
    wanted = ["show", "--no-all-versions", *sorted(names)]
    text = _run(["apt-cache", *index, *wanted], "/", check=False)
    found = {}
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): (.*)$", stanza, re.MULTILINE))
        if not {"Package", "Version", "SHA256"} <= fields.keys():
            continue
        depends = ", ".join((fields.get("Pre-Depends", ""), fields.get("Depends", "")))
        alternatives = [
            re.findall(r"[a-z0-9][a-z0-9.+-]+", part)[:1] for part in depends.split(",")
        ]
        found[fields["Package"]] = Package(
            fields["Package"],
            fields["Version"],
            fields["SHA256"],
            tuple(n for first in alternatives for n in first),
        )
    return found


def require(names: Iterable[str], index: Index = ()) -> dict[str, Package]:
    """Check names. Raises Unavailable when apt does not know one of them."""
    wanted = list(names)
    refresh()
    found = show(wanted, index)
    if missing := ", ".join(name for name in wanted if name not in found):
        if not apt.is_private():
            raise Unavailable(f"apt knows no package {missing}", remediation=apt.fix())
        raise Unavailable(
            f"{apt.archive()} has no package {missing}, of which images are built",
            remediation=f"{apt.fix()}; or {ELSEWHERE}",
        )
    return found


def closure(
    roots: Iterable[str], follow: Callable[[str], bool], index: Index = ()
) -> dict[str, Package]:
    """Return the packages and those they depend on whose name ``follow`` accepts."""
    found = require(roots, index)
    wanted = set(found)
    while True:
        news = {d for p in found.values() for d in p.depends if follow(d)} - wanted
        if not news:
            return found
        wanted |= news
        found |= show(news, index)


def unpack(
    wanted: Iterable[Package], cache: str, keep: Callable[[str], bool], say: Callable[[str], None]
) -> dict[str, str]:
    """Name -> the package's tree in the cache, downloaded if need be, less what ``keep`` rejects.

    ``keep`` judges the paths of files within a tree. What was in /bin or /lib is below /usr.
    Raises Unavailable.
    """
    folders = {package: os.path.join(cache, package.folder) for package in wanted}
    for folder in folders.values():
        if not is_merged(folder):  # an older agentd's, which also kept fewer modules
            shutil.rmtree(folder)
    missing = [package for package, folder in folders.items() if not os.path.isdir(folder)]
    if missing:
        os.makedirs(cache, exist_ok=True)
        # Beside their final place, so that the rename is atomic.
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as place:
            say(f"downloading {counted(len(missing), 'package')}")
            _download(missing, place)
            for package in missing:
                say(f"unpacking {package.name} {package.version}")
                _unpack_one(package, place, folders[package], keep)
    return {package.name: folder for package, folder in folders.items()}


@contextlib.contextmanager
def reading(wanted: list[Package], folder: str) -> Iterator[None]:
    """Says of what cannot be read in ``folder`` which packages' file it is. Raises Unavailable."""
    names = ", ".join(f"{package.name} {package.version}" for package in wanted[:_NAMED])
    more = f" and {len(wanted) - _NAMED} more" if len(wanted) > _NAMED else ""
    try:
        yield
    except FileNotFoundError as error:
        raise Unavailable(
            f"{_inner(error, folder)} is in no package of {names}{more}"
            if len(wanted) > 1
            else f"the package {names} has no {_inner(error, folder)}",
            remediation=f"the suite of Debian may be one that is not known here: {ELSEWHERE}",
        ) from error
    except OSError as error:
        raise Unavailable(
            f"cannot read {_inner(error, folder)} of the package {names}{more}: {error.strerror}"
        ) from error
    except Unavailable as error:
        raise Unavailable(
            f"the package {names}{more}: {error.message}",
            cause=error.cause,
            remediation=error.remediation,
        ) from error


def _inner(error: OSError, folder: str) -> str:
    path = os.fsdecode(error.filename or "")
    return path.removeprefix(folder) or "a file"


def _download(wanted: list[Package], place: str) -> None:
    # An unprivileged _apt cannot write here, and says so each time; that is only a warning.
    _run(["apt-get", "download", *(f"{p.name}={p.version}" for p in wanted)], place)


def _unpack_one(package: Package, place: str, target: str, keep: Callable[[str], bool]) -> None:
    archives = [
        n for n in os.listdir(place) if n.startswith(f"{package.name}_") and n[-4:] == ".deb"
    ]
    if len(archives) != 1:
        raise Unavailable(f"apt-get download {package.name} gave {len(archives)} files")
    archive = os.path.join(place, archives[0])
    if of_file(archive) != package.sha256:
        raise Unavailable(f"{package.name} is not what apt's index says", remediation=apt.fix())
    tree = os.path.join(place, f"tree-{package.name}")
    _run(["dpkg-deb", "-x", archive, tree], place)
    os.unlink(archive)
    merge(tree)
    _prune(tree, keep)
    try:
        os.rename(tree, target)
    except OSError:
        if not os.path.isdir(target):  # a parallel build has put it there
            raise


def _prune(tree: str, keep: Callable[[str], bool]) -> None:
    for folder, folders, names in os.walk(tree, topdown=False):
        for name in names:
            path = os.path.join(folder, name)
            if not keep(os.path.relpath(path, tree)):
                os.unlink(path)
        for name in folders:
            path = os.path.join(folder, name)
            if not os.path.islink(path) and not os.listdir(path):
                os.rmdir(path)


def _run(argv: list[str], folder: str, *, check: bool = True) -> str:
    if shutil.which(argv[0]) is None:
        where = "here" if distribution.is_debian() else f"on {distribution.name()}"
        raise Unavailable(
            f"{argv[0]} is not installed {where}, and images are built of Debian's packages",
            remediation=f"install apt and dpkg, which use Debian's archive and change nothing of "
            f"this machine's packages; or {ELSEWHERE}",
        )
    shown = " ".join(argv[:3])
    env = {**os.environ, "LC_ALL": "C", **apt.variables()}
    try:
        said = programs.ask(argv, _SECONDS, env=env, cwd=folder)
    except TimeoutError:
        raise Unavailable(f"{shown} took more than {_SECONDS} s", remediation=apt.fix()) from None
    if check and said.code != 0:
        errors = [line for line in said.err.splitlines() if line.startswith("E:")]
        reason = "; ".join(errors) or said.err.strip()[-400:]
        raise Unavailable(f"{shown} failed", cause=reason, remediation=apt.fix())
    return said.out
