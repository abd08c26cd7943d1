"""Sets of packages on disk, each by the digest of its lock, and which set a request became.

FOLDER/sets/DIGEST/root/    the packages, as pip puts them into a folder
FOLDER/sets/DIGEST/set.json what they are (``PackageSet``)
FOLDER/sets/DIGEST.lock     held shared by each sandbox that has it, alone by who changes it
FOLDER/requests/KEY.json    which set a request became, and when (``Answer``)
FOLDER/pythons/KEY.json     what Python sandboxes of one kind have (``daemon.packages.python``)
FOLDER/turns/NN.lock        held by who looks for what a request becomes: others wait for that
FOLDER/work/                of who is at it; of one that was killed, until the next one cleans up
FOLDER/.lock                held while sets come or go

A set is written aside, and put in place whole. Only who made the folder writes to it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from hashlib import sha256

import msgspec

from agentd.image import store as machines
from agentd.image.oci.roots import ROOT, Roots, look
from agentd.image.oci.work import WorkFolder, size_of, sweep
from agentd.linux import locks, paths
from agentd.linux.replacing import replacing
from agentd.model import typed
from agentd.model.errors import NotFound, SandboxError
from agentd.model.mount import Mount
from agentd.model.packages import LockedPackage
from agentd.model.system import os_errors_as
from agentd.sandbox.volume_lease import VolumeLease

FORMAT = 1
ABOUT = "set.json"
MAX_ABOUT = 1 << 20
_SETS, _REQUESTS, _PYTHONS, _TURNS, _WORK = "sets", "requests", "pythons", "turns", "work"
_TURN_FILES = 4  # so many look at once, of all requests
_TURN_POLL = 0.05  # seconds
_MAX_ANSWERS = 4096
_FILE = 4 << 10  # bytes that a file counts for, however little is in it: disks have so many files
_FORGET_SECONDS = 30 * 86400.0  # what a request became, and no other since


class PackageSet(msgspec.Struct, frozen=True):
    """``python`` is what they are for; ``bytes`` is what their files take on disk."""

    format: int
    python: str
    packages: tuple[LockedPackage, ...]
    files: int
    bytes: int

    @property
    def digest(self) -> str:
        return digest_of(self.python, self.packages)

    @property
    def counted(self) -> int:
        """Returns what it takes of the store's room."""
        return self.bytes + self.files * _FILE


class Answer(msgspec.Struct, frozen=True):
    format: int
    digest: str
    time: float


class PackagesLease(VolumeLease):
    """A set in use: it is not removed until this is closed, or its process has ended."""

    def __init__(self, path: str, lock: locks.HeldLock) -> None:
        super().__init__(None, "", -1)
        self.path = path
        self._lock = lock

    @property
    def bound(self) -> str:
        return "only to be read"

    def close(self) -> None:
        """Gives it back; idempotent."""
        self._lock.close()


def digest_of(python: str, packages: tuple[LockedPackage, ...]) -> str:
    """Return the digest of a lock: the same packages for the same Python are one set."""
    text = msgspec.json.encode([python, sorted(map(str, packages))])
    return f"sha256:{sha256(text).hexdigest()}"


def default_folder() -> str:
    """Returns the usual folder, beside the images."""
    return os.path.join(os.path.dirname(machines.default_folder()), "packages")


class PackageStore:
    """Any number of processes use one at once. Raises SandboxError where it cannot be used."""

    def __init__(self, folder: str | None = None) -> None:
        self.folder = os.path.realpath(folder or default_folder())
        self._sets = Roots(os.path.join(self.folder, _SETS))

    # --- what a request became ---

    def recall(self, key: str, seconds: float) -> str | None:
        """Return the set that a request became less than ``seconds`` ago, where it is there."""
        found = self._read(_REQUESTS, key, Answer)
        if found is None or found.format != FORMAT:
            return None
        fresh = 0 <= time.time() - found.time < seconds
        return found.digest if fresh and self._is_there(found.digest) else None

    def remember(self, key: str, digest: str) -> None:
        with self._errors():
            self._make_folders()
            with self._locked():  # who forgets takes what is half written for a leftover
                self._write(_REQUESTS, key, Answer(FORMAT, digest, time.time()))

    @contextlib.contextmanager
    def turn(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Has one of several that look for one thing at once do so, and ``waiting`` is called by
        the others now and then."""
        name = f"{int(key[:8], 16) % _TURN_FILES:02}.lock"
        with self._errors():
            self._make_folders()
            path = os.path.join(self.folder, _TURNS, name)
            while True:
                with contextlib.suppress(BlockingIOError):
                    lock = locks.HeldLock(locks.take(path))
                    break
                waiting()
                time.sleep(_TURN_POLL)
        with lock:
            yield

    def recall_python(self, key: str, kind: "type[typed.T]") -> "typed.T | None":
        return self._read(_PYTHONS, key, kind)

    def remember_python(self, key: str, found: object) -> None:
        self._write(_PYTHONS, key, found)

    # --- sets ---

    def lease(self, digest: str) -> PackagesLease:
        """Take a set, so that it stays. Raises NotFound."""
        with self._errors():
            held = self._sets.lease(digest) if self._is_there(digest) else None
            if held is None:
                raise NotFound(
                    f"the packages {digest} are not in {self.folder} any more",
                    remediation="make a sandbox that asks for them anew",
                )
            with contextlib.suppress(OSError):
                os.utime(self._sets.place(digest))  # who has not been used for longest goes first
        return PackagesLease(held.path, held)

    def root(self, digest: str) -> str:
        """Returns the folder of a set, whether it is there or not."""
        return self._sets.root(digest)

    def about(self, digest: str) -> PackageSet:
        """Returns what is known of a set. Raises NotFound, SandboxError."""
        path = os.path.join(self._sets.place(digest), ABOUT)
        with self._errors():
            try:
                with open(path, "rb") as file:
                    found = typed.decoder(PackageSet).decode(file.read(MAX_ABOUT))
            except FileNotFoundError:
                raise NotFound(f"there are no packages {digest}") from None
            except msgspec.MsgspecError as error:
                raise self._damaged(digest, str(error)) from error
        if found.digest != digest:
            raise self._damaged(digest, f"{ABOUT} is of other packages")
        return found

    def _damaged(self, digest: str, why: str) -> SandboxError:
        fix = "agentd packages prune"
        return SandboxError(f"the packages {digest} are damaged", cause=why, remediation=fix)

    def add(
        self,
        python: str,
        packages: tuple[LockedPackage, ...],
        fill: Callable[[str], None],
        most: int | None,
    ) -> str:
        """Make a set, of what ``fill`` writes as the folder that it is given the path of; others
        that are not in use go where all would be over ``most`` bytes. Return its digest.

        Raises SandboxError, and what ``fill`` raises.
        """
        digest = digest_of(python, packages)
        with self._errors():
            self._make_folders()
            with self._sets.making(digest) as missing:
                if missing:
                    self._add(digest, python, packages, fill)
        if most is not None:
            self.prune(most, keep=digest)
        return digest

    def _add(
        self,
        digest: str,
        python: str,
        packages: tuple[LockedPackage, ...],
        fill: Callable[[str], None],
    ) -> None:
        with self._locked():
            sweep(os.path.join(self.folder, _WORK))
            work = WorkFolder(os.path.join(self.folder, _WORK))
        with contextlib.closing(work):
            made = work.make("set")
            root = os.path.join(made, ROOT)
            fill(root)
            os.chmod(made, 0o755)  # noqa: S103  who runs commands at the process level goes there
            os.chmod(root, 0o755)  # noqa: S103
            measured, _ = look(root)
            about = PackageSet(FORMAT, python, packages, measured.files, measured.bytes)
            with open(os.path.join(made, ABOUT), "xb") as file:
                file.write(msgspec.json.encode(about))
            paths.sync_filesystem(made)
            with self._locked():
                os.rename(made, self._sets.place(digest))

    def all(self) -> "list[tuple[PackageSet, float, bool]]":
        """Lists each set, when it was used last, and whether it is in use now; the latest first."""
        found = []
        for digest in self._sets.chains():
            with contextlib.suppress(NotFound, OSError):
                about, used = self.about(digest), os.stat(self._sets.place(digest)).st_mtime
                found.append((about, used, self._is_used(digest)))
        return sorted(found, key=lambda one: one[1], reverse=True)

    def prune(self, most: int = 0, keep: str = "") -> int:
        """Remove sets that nobody uses, those of the longest ago first, until all take ``most``
        bytes at most; ``keep`` stays. Return the bytes that were freed."""
        with self._errors():
            self._make_folders()
            with self._locked():
                freed = sweep(os.path.join(self.folder, _WORK))
                freed += self._prune(most, keep)
                self._forget()
        return freed

    def _prune(self, most: int, keep: str) -> int:
        kept, freed = [], 0
        for digest in self._sets.chains():
            try:
                kept.append((os.stat(self._sets.place(digest)).st_mtime, self.about(digest)))
            except (FileNotFoundError, NotFound, SandboxError):  # begun, a lock, or damaged
                if not keep:
                    is_there = self._sets.is_there(digest)
                    size = size_of(self._sets.place(digest)) if is_there else 0
                    freed += size if self._sets.remove(digest) else 0
        total = sum(about.counted for _, about in kept)
        for _, about in sorted(kept, key=lambda one: one[0]):
            if total <= most:
                break
            if about.digest != keep and self._sets.remove(about.digest):
                total -= about.counted
                freed += about.bytes
        return freed

    def _forget(self) -> None:
        """What requests became that is gone, or long ago. Under the lock."""
        folder = os.path.join(self.folder, _REQUESTS)
        names = os.listdir(folder)
        names.sort(key=lambda name: os.stat(os.path.join(folder, name)).st_mtime, reverse=True)
        for number, name in enumerate(names):
            found = self._read(_REQUESTS, name.removesuffix(".json"), Answer)
            old = (
                number >= _MAX_ANSWERS
                or found is None
                or time.time() - found.time > _FORGET_SECONDS
            )
            if old or not self._is_there(found.digest if found else ""):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(folder, name))

    def _is_there(self, digest: str) -> bool:
        return bool(digest) and os.path.isdir(self._sets.root(digest))

    def _is_used(self, digest: str) -> bool:
        try:
            locks.HeldLock(locks.take(f"{self._sets.place(digest)}.lock")).close()
        except BlockingIOError:
            return True
        return False

    # --- the folder itself ---

    def _read(self, kind: str, key: str, of: "type[typed.T]") -> "typed.T | None":
        try:
            with open(os.path.join(self.folder, kind, f"{key}.json"), "rb") as file:
                return typed.decoder(of).decode(file.read(MAX_ABOUT))
        except (OSError, msgspec.MsgspecError):
            return None

    def _write(self, kind: str, key: str, value: object) -> None:
        with self._errors():
            self._make_folders()
            path = os.path.join(self.folder, kind, f"{key}.json")
            with replacing(path, 0o644) as file:
                file.write(msgspec.json.encode(value))

    def _make_folders(self) -> None:
        """Raises OSError, and SandboxError for a folder that others could write to."""
        os.makedirs(self.folder, 0o755, exist_ok=True)
        found = os.lstat(self.folder)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise SandboxError(
                f"{self.folder} could be written by others",
                remediation=f"chown {os.geteuid()} {self.folder} && chmod 755 {self.folder}",
            )
        for name in (_SETS, _REQUESTS, _PYTHONS, _TURNS, _WORK):
            path = os.path.join(self.folder, name)
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
                os.chmod(path, 0o755)  # noqa: S103  whatever the umask

    def _locked(self) -> "contextlib.AbstractContextManager[None]":
        return locks.held(os.path.join(self.folder, ".lock"))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        fix = f"see to {self.folder}, which must be writable, with room; or set XDG_CACHE_HOME"
        with os_errors_as(SandboxError, "packages cannot be kept", fix):
            yield


def store_of(mount: Mount) -> PackageStore:
    """Returns the store that a mount's packages are in."""
    return PackageStore(os.path.dirname(os.path.dirname(os.path.dirname(mount.source))))
