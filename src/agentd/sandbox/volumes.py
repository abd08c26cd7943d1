"""Named volumes: folders of agentd's own that outlive sandboxes, and who has them now.

    FOLDER/lock                   held while the rest is changed, and never for long
    FOLDER/OWNER/NAME/about.json  what it is (``VolumeAbout``); OWNER is a digest of whose it is
    FOLDER/OWNER/NAME/data/       what sandboxes see
    FOLDER/OWNER/NAME/used/       a file for each sandbox that has it, locked by who holds that one
    FOLDER/.new-X, .gone-X        one that is being made, or removed, by whoever has its file "busy"

A lock is the kernel's (flock(2)): it is given up whatever kills its holder. So any number of
processes and daemons use one FOLDER, and what one of them left half done the next removes.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import NamedTuple

import msgspec

from agentd.guest.removal import remove_folder
from agentd.linux import disk, locks, paths
from agentd.model import typed
from agentd.model.errors import Conflict, NotFound, QuotaExceeded, SandboxError
from agentd.model.mount import Mount, MountMode, check_volume
from agentd.model.system import os_errors_as
from agentd.sandbox.backends import identity
from agentd.sandbox.disk_left import check_left
from agentd.sandbox.volume import (
    DATA,
    IMAGE,
    SNAPSHOT,
    Volume,
    VolumeAbout,
    in_use,
    none_called,
    size_of,
)
from agentd.sandbox.volume_copy import copy_tree
from agentd.sandbox.volume_lease import VolumeLease, holder

MAX_VOLUMES = 256  # of one principal
_ABOUT, _USED, _BUSY, _LOCK = "about.json", "used", "busy", "lock"
_NEW, _GONE = ".new-", ".gone-"
_MAX_ABOUT = 1 << 16
_TURN_SECONDS = 30.0  # whoever has it needs it for milliseconds
_END_SECONDS, _END_POLL = 5.0, 0.02


#: Whether a sandbox, by its id, is known to live.
Lives = Callable[[str], bool]
Record = Callable[[], object]


def _unknown(_: str) -> bool:
    return False


class _Entry(NamedTuple):
    holder: str
    mode: str


class VolumeStore:
    """Thread-safe, and safe beside other processes. Nothing is made before the first volume is.

    ``record`` is called right before a volume is there, or is gone; where it raises, neither is.
    """

    def __init__(self, folder: str) -> None:
        # Backends follow no link on the way to what they mount.
        self.folder = os.path.realpath(folder)

    def create(
        self,
        owner: str,
        name: str,
        size: str | int | None = None,
        record: Record = lambda: None,
    ) -> Volume:
        """Make an empty one. Raises InvalidInput, Refused where no ``size`` can be enforced,
        Conflict, QuotaExceeded, Full, SandboxError."""
        check_volume(name)
        bound = size_of(size)
        self._sweep()
        # The first block of the usual range is never a sandbox's (``identity``).
        first = identity.configured().start if identity.available() else None
        about = VolumeAbout(name, owner, time.time(), first, bound)
        cannot = f"volume {name} cannot be made"
        with self._errors(cannot), self._making(about, record) as (made, _):
            os.mkdir(os.path.join(made, DATA))
            os.chmod(os.path.join(made, DATA), 0o755)  # noqa: S103  (FOLDER is its owner's alone)
            if bound is not None and first is not None:
                disk.make(os.path.join(made, IMAGE), bound, first)
            elif first is not None:
                os.chown(os.path.join(made, DATA), first, first)
        return Volume(about, self._path(owner, name))

    def all(self, owner: str) -> tuple[Volume, ...]:
        """List those of one principal, by name."""
        self._sweep()
        with self._errors("volumes cannot be listed"), self._turn():
            found = [self._find(owner, name) for name in self._names(owner)]
        return tuple(volume for volume in found if volume is not None)

    def get(self, owner: str, name: str) -> Volume:
        """Returns one by name. Raises NotFound."""
        check_volume(name)
        with self._errors(f"volume {name} cannot be read"), self._turn():
            return self._get(owner, name)

    def remove(
        self, owner: str, name: str, lives: Lives = _unknown, record: Record = lambda: None
    ) -> None:
        """Remove it and all that is in it. Raises NotFound, and Conflict while it is in use.

        A sandbox that was ended may have it for a moment more. So those are waited for of which
        the caller does not know by ``lives`` that they live.
        """
        check_volume(name)
        self._sweep()
        with self._errors(f"volume {name} cannot be removed"):
            self._await_ended(owner, name, lives)
            with self._turn():
                volume = self._get(owner, name)
                if volume.users:
                    raise in_use(volume)
                record()
                busy = locks.take(os.path.join(volume.path, _BUSY))
                gone = os.path.join(self.folder, _GONE + os.urandom(8).hex())
                os.rename(volume.path, gone)
            self._discard(gone, busy)

    def snapshot(
        self,
        owner: str,
        name: str,
        new: str,
        lives: Lives = _unknown,
        record: Record = lambda: None,
    ) -> Volume:
        """Make another that has what this one has now: no sandbox may write to it meanwhile. Those
        that were ended are waited for as ``remove`` does.

        Raises InvalidInput, NotFound, Conflict, QuotaExceeded, Full, SandboxError.
        """
        check_volume(name)
        check_volume(new)
        self._sweep()
        with self._errors(f"volume {name} cannot be copied"):
            self._await_ended(owner, name, lives, writing=True)
            with self._turn():
                volume = self._get(owner, name)
                self._check_still(volume)
                entry, lock = self._enter(volume.path, SNAPSHOT, MountMode.RO)
            lease = VolumeLease(None, entry, lock)
            kept = volume.about
            about = VolumeAbout(new, owner, time.time(), kept.first_id, kept.size)
            with contextlib.closing(lease), self._making(about, record) as (made, busy):
                copy_tree(volume.data, made, (busy, lock))
                if volume.image:
                    copy_tree(volume.image, made, (busy, lock), whole=True)
        return Volume(about, self._path(owner, new))

    def found(self, owner: str, mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
        """Returns the mounts, with the place of each that is a volume. Raises NotFound."""
        return tuple(self._mounted(owner, mount) if mount.volume else mount for mount in mounts)

    def _mounted(self, owner: str, mount: Mount) -> Mount:
        try:
            return msgspec.structs.replace(mount, source=self.get(owner, mount.volume).data)
        except NotFound as error:
            error.remediation += f"; agentd volume create {mount.volume} makes it"
            raise

    def lease(self, mount: Mount) -> VolumeLease:
        """Take one that ``found`` has found, for ``holder``. Raises NotFound, Conflict."""
        path = os.path.dirname(mount.source)
        with self._errors(f"volume {mount.volume} cannot be used"), self._turn():
            about = self._about(path)
            if about is None or about.name != mount.volume:
                raise none_called(mount.volume)
            if mount.mode is not MountMode.RO or about.size is not None:
                self._check_not_copied(about.name, path)
            entry = self._enter(path, holder.get() or f"process-{os.getpid()}", mount.mode)
        return VolumeLease(about.first_id, *entry, Volume(about, path).image, about.size)

    # --- under the lock ---

    def _get(self, owner: str, name: str) -> Volume:
        volume = self._find(owner, name)
        if volume is None:
            raise none_called(name)
        return volume

    def _find(self, owner: str, name: str) -> Volume | None:
        path = self._path(owner, name)
        about = self._about(path)
        if about is None:
            return None
        users = {entry.holder for entry in self._entries(path)}
        return Volume(about, path, tuple(sorted(users)))

    def _about(self, path: str) -> VolumeAbout | None:
        try:
            with open(os.path.join(path, _ABOUT), "rb") as file:
                return typed.decoder(VolumeAbout).decode(file.read(_MAX_ABOUT))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.MsgspecError as error:
            raise SandboxError(f"volume {path} is damaged", cause=f"{_ABOUT}: {error}") from error

    def _check_still(self, volume: Volume) -> None:
        """Raises Conflict where a sandbox may write to it; a file system of its own is whole only
        once nobody has it."""
        if who := self._writers(volume):
            raise in_use(volume._replace(users=who), "in use" if volume.image else "written to")
        if volume.image and disk.is_mounted(volume.image):
            raise Conflict(f"volume {volume.about.name} is in use", remediation="try again")

    def _writers(self, volume: Volume) -> tuple[str, ...]:
        entries = self._entries(volume.path)
        who = {e.holder for e in entries if volume.image or e.mode != MountMode.RO}
        return tuple(sorted(who))

    def _await_ended(self, owner: str, name: str, lives: Lives, *, writing: bool = False) -> None:
        """Wait a moment while those who have it, or are ``writing``, may be ending."""
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            with self._turn():
                volume = self._get(owner, name)
                users = self._writers(volume) if writing else volume.users
            mounted = writing and bool(volume.image) and disk.is_mounted(volume.image)
            if any(map(lives, users)) or not (users or mounted):
                return
            time.sleep(_END_POLL)

    def _check_not_copied(self, name: str, path: str) -> None:
        if any(entry.holder == SNAPSHOT for entry in self._entries(path)):
            raise Conflict(
                f"volume {name} is being copied",
                remediation=f"mount it as {name}:...:ro, or wait until its snapshot is there",
            )

    def _names(self, owner: str) -> list[str]:
        try:
            return sorted(os.listdir(self._home(owner)))
        except FileNotFoundError:
            return []

    def _entries(self, path: str) -> list[_Entry]:
        """Who has it; what was left by those who have died is removed."""
        found = []
        for name in os.listdir(os.path.join(path, _USED)):
            entry = os.path.join(path, _USED, name)
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(entry, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    who, mode, _ = name.rsplit(".", 2)
                    found.append(_Entry(who, mode))
                else:
                    os.unlink(entry)
                finally:
                    os.close(fd)
        return found

    def _enter(self, path: str, who: str, mode: MountMode) -> tuple[str, int]:
        """The file that says that ``who`` has it, and its lock."""
        entry = os.path.join(path, _USED, f"{who}.{mode}.{os.urandom(4).hex()}")
        return entry, locks.take(entry)

    # --- the folder itself ---

    def _sweep(self) -> None:
        """Remove what those who died left half made or half removed; quiet where it cannot."""
        dead: dict[str, int] = {}
        with contextlib.suppress(OSError), self._turn():
            for name in os.listdir(self.folder):
                path = os.path.join(self.folder, name)
                if name.startswith((_NEW, _GONE)):
                    with contextlib.suppress(OSError):
                        dead[path] = locks.take(os.path.join(path, _BUSY))
        for path, busy in dead.items():
            with contextlib.suppress(OSError):
                self._discard(path, busy)

    def _discard(self, path: str, busy: int) -> None:
        """Remove one that is no volume. Owns ``busy``, its lock, which goes last.

        Raises OSError."""
        try:
            for name in os.listdir(path):
                inner = os.path.join(path, name)
                if os.path.isdir(inner) and not os.path.islink(inner):
                    remove_folder(inner)
                elif name != _BUSY:
                    os.unlink(inner)
            with self._turn():
                os.unlink(os.path.join(path, _BUSY))
                os.rmdir(path)
        finally:
            os.close(busy)

    def _home(self, owner: str) -> str:
        return os.path.join(self.folder, sha256(owner.encode()).hexdigest()[:32])

    def _path(self, owner: str, name: str) -> str:
        return os.path.join(self._home(owner), name)

    @contextlib.contextmanager
    def _making(self, about: VolumeAbout, record: Record) -> Iterator[tuple[str, int]]:
        """A folder that becomes the volume at the block's end, or is gone where it fails; and its
        lock, which keeps others from removing it."""
        made = os.path.join(self.folder, _NEW + os.urandom(8).hex())
        with self._turn():
            self._check_room(about)
            check_left(self.folder, "volume", about.size or 0)
            os.mkdir(made, 0o700)
            busy = locks.take(os.path.join(made, _BUSY))
        try:
            yield made, busy
            check_left(self.folder, "volume")
            os.mkdir(os.path.join(made, _USED), 0o700)
            with open(os.path.join(made, _ABOUT), "xb", opener=paths.private) as file:
                file.write(msgspec.json.encode(about))
                file.flush()
                os.fsync(file.fileno())
            with self._turn():
                self._check_room(about)
                os.makedirs(self._home(about.principal), 0o700, exist_ok=True)
                record()
                os.unlink(os.path.join(made, _BUSY))
                place = self._path(about.principal, about.name)
                os.rename(made, place)
                try:
                    paths.sync(self._home(about.principal))
                except OSError:  # who hears that it was not made finds none
                    os.rename(place, made)
                    raise
            os.close(busy)
        except BaseException:
            with contextlib.suppress(OSError):  # whoever sweeps next does it
                self._discard(made, busy)
            raise

    def _check_room(self, about: VolumeAbout) -> None:
        if os.path.lexists(self._path(about.principal, about.name)):
            raise Conflict(
                f"there is a volume {about.name} already",
                remediation=f"use it, choose another name, or agentd volume rm {about.name}",
            )
        if len(self._names(about.principal)) >= MAX_VOLUMES:
            raise QuotaExceeded(
                f"{about.principal} has {MAX_VOLUMES} volumes already",
                remediation="remove some: agentd volume ls lists them",
            )

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The one process, and thread, that changes the folder now."""
        self._make_folder()
        try:
            lock = locks.take_within(os.path.join(self.folder, _LOCK), _TURN_SECONDS)
        except BlockingIOError:
            raise SandboxError(
                f"another process holds {self.folder}/{_LOCK}",
                remediation="let it go on, or end it",
            ) from None
        with locks.HeldLock(lock):
            yield

    def _make_folder(self) -> None:
        """Raises OSError, and SandboxError for one that is another's to change."""
        os.makedirs(self.folder, 0o700, exist_ok=True)
        found = os.lstat(self.folder)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise SandboxError(
                f"{self.folder} could be written by others",
                remediation=f"chown {os.geteuid()} {self.folder} && chmod 700 {self.folder}",
            )

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        # Root's place does not depend on the other (daemon.config.profiles).
        place = "XDG_STATE_HOME" if os.geteuid() else "AGENTD_DAEMON__STATE"
        fix = f"see to {self.folder}, which must be writable, with room; or set {place}"
        with os_errors_as(SandboxError, what, fix):
            yield


def store_of(mount: Mount) -> VolumeStore:
    """Returns the store in which the volume of a mount was found."""
    return VolumeStore(os.path.dirname(os.path.dirname(os.path.dirname(mount.source))))
