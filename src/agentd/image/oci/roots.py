"""Unpacked roots: one directory for each chain of layers, shared by all that start of it.

FOLDER/CHAIN/root/       the files, all of one owner; read-only to whoever uses them
FOLDER/CHAIN/root.json   what they were when they were unpacked (``Unpacked``)
FOLDER/CHAIN.lock        held shared by each who uses it, alone by who makes or removes it
FOLDER/CHAIN.gone        one that is being removed: a kill leaves no half of it for a whole
"""

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator

import msgspec

from agentd.guest.removal import remove_folder
from agentd.image.model import Corrupt
from agentd.image.oci.layout import read
from agentd.image.oci.values import check_digest, decode
from agentd.linux import locks

ROOT, ABOUT = "root", "root.json"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacked(msgspec.Struct, frozen=True):
    """``digest`` is of each file's path, type, mode, size, time and link, not of its content."""

    files: int
    bytes: int
    digest: str


class Lease(locks.HeldLock):
    """A root in use: not removed while any process has one. ``path`` is its directory."""

    def __init__(self, path: str, lock: int) -> None:
        super().__init__(lock)
        self.path = path


class Roots:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def place(self, chain: str) -> str:
        return os.path.join(self.folder, check_digest(chain))

    def root(self, chain: str) -> str:
        """Return the path of its files."""
        return os.path.join(self.place(chain), ROOT)

    def _lock(self, chain: str) -> str:
        return f"{self.place(chain)}.lock"

    def _gone(self, chain: str) -> str:
        return f"{self.place(chain)}.gone"

    def is_there(self, chain: str) -> bool:
        return os.path.lexists(self.place(chain))

    def lease(self, chain: str) -> Lease | None:
        """Lease a root; None where it is not unpacked. Waits while another process unpacks it."""
        lock = locks.take(self._lock(chain), fcntl.LOCK_SH)
        if self.is_there(chain):
            return Lease(self.root(chain), lock)
        os.close(lock)
        return None

    @contextlib.contextmanager
    def making(self, chain: str) -> Iterator[bool]:
        """Yield True to the only one who may unpack it now, False where it is there: it stays there
        until the block ends, in either case."""
        lease = self.lease(chain)
        if lease is not None:
            with lease:
                yield False
            return
        with locks.held(self._lock(chain)):
            remove_folder(self._gone(chain))  # of who was killed
            yield not self.is_there(chain)

    def remove(self, chain: str) -> bool:
        """Remove one; False where it is in use, or being unpacked. Under the store's lock."""
        try:
            lock = locks.take(self._lock(chain))
        except BlockingIOError:
            return False
        with locks.HeldLock(lock):
            gone = self._gone(chain)
            remove_folder(gone)  # of who was killed
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.place(chain), gone)
            remove_folder(gone)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._lock(chain))
        return True

    def chains(self) -> list[str]:
        """List the chains of all that are there or begun."""
        try:
            names = {name.removesuffix(".lock") for name in os.listdir(self.folder)}
        except FileNotFoundError:
            return []
        return sorted(f"sha256:{name}" for name in names if len(name) == 64)

    def about(self, chain: str) -> Unpacked:
        """Read what is known of one. Raises Corrupt."""
        try:
            fd = os.open(self.place(chain), _FOLDER)
        except OSError as error:
            raise Corrupt(f"the unpacked root {chain} is gone", cause=str(error)) from error
        try:
            return decode(read(ABOUT, fd), Unpacked, "description of its unpacked root")
        finally:
            os.close(fd)

    def check(self, chain: str) -> None:
        """Check one. Raises Corrupt where a file was changed, cut or removed since unpacked."""
        (now, _), then = look(self.root(chain)), self.about(chain)
        # Not by the blocks that it takes: a file system may count others once all is written.
        if (now.files, now.digest) != (then.files, then.digest):
            raise Corrupt(f"the unpacked root {chain} is not what was unpacked")


def look(root: str) -> tuple[Unpacked, int]:
    """Return what a tree is now, and how many files are in it: what is recorded counts directories
    twice. One that is closed to its owner counts without what is in it. Raises OSError."""
    total, files, inner, size = hashlib.sha256(), 0, 0, 0
    for path, folders, names, fd in os.fwalk(root, onerror=_unless_closed):
        folders.sort()
        inner += len(folders) + len(names)
        inside = os.fsencode(os.path.relpath(path, root))
        for name in sorted([".", *folders, *names]):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            files += 1
            size += status.st_blocks * 512
            facts = [stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)]
            if not stat.S_ISDIR(status.st_mode):
                facts += [status.st_size, status.st_mtime_ns]
            link = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else ""
            for part in (inside, os.fsencode(name), repr(facts).encode(), os.fsencode(link)):
                total.update(len(part).to_bytes(4, "big") + part)
    return Unpacked(files, size, f"sha256:{total.hexdigest()}"), inner


def _unless_closed(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise error
