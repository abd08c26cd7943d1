"""Snapshots on disk: written whole or not at all, checked before they are used.

    PATH/manifest.json     what it is, and the size and digest of every file of its state
    PATH/state/...         what the wall wrote; the backend alone knows what it means

A snapshot holds all of its sandbox's memory: its folders are for their owner alone. Digests find
damage, not forgery, so one that others could have written is refused.
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from agentd._version import __version__
from agentd.linux import locks, paths
from agentd.model import typed
from agentd.model.errors import InvalidInput, NotFound, Refused, SandboxError
from agentd.model.limits import said
from agentd.model.mount import Mount, MountMode
from agentd.model.packages import PLACE
from agentd.model.snapshot import FORMAT, SnapshotManifest, StateFile
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.model.system import os_errors_as
from agentd.sandbox import sparse
from agentd.sandbox.backends.limits import usual

MANIFEST = "manifest.json"
STATE = "state"
MAX_FILES = 64
MAX_MANIFEST = 1 << 20
# Of a machine; what is missing is a command's, or the relay's.
_LIMITS = ("memory", "cpus", "pids", "disk", "open_files")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# In the name of a folder that is filled, between that of the snapshot and what mkdtemp(3) adds.
_OURS = ".agentd-"
_DAEMONS_ID = re.compile(r"snp-[0-9a-f]{16}")


class Snapshot:
    """A sandbox's state, for ``Sandbox.create(snapshot=...)``, any number of times.

    In a with statement it is deleted at the end, unless it was given a path to keep it at.
    """

    #: The daemon that keeps it: none.
    url = None

    def __init__(self, manifest: SnapshotManifest, path: str, *, kept: bool) -> None:
        self.manifest = manifest
        self.path = path
        self._kept = kept

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def fidelity(self) -> str:
        """Tells what is in it: "memory" is processes and files, "files" is files alone."""
        return self.manifest.fidelity

    @property
    def backend(self) -> str:
        return self.manifest.backend

    @property
    def spec(self) -> SandboxSpec:
        """Return the spec of the sandbox that it was taken of."""
        return self.manifest.spec

    @property
    def size(self) -> int:
        """Returns the bytes of its files together."""
        return sum(file.size for file in self.manifest.files)

    @property
    def state(self) -> str:
        """Returns the folder that the backend reads."""
        return os.path.join(self.path, STATE)

    def delete(self) -> None:
        """Removes it; idempotent. Sandboxes that were made of it stay as they are."""
        shutil.rmtree(self.path, ignore_errors=True)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write it as an archive of an OCI image, ``oci-archive:PATH``: the image that it was taken
        of, with what was changed as one more layer.

        Raises InvalidInput, Refused for one of memory, SandboxError where it is damaged.
        """
        from agentd.sandbox import exports  # late: few need it

        exports.check(self.manifest, os.fspath(path))
        verify(self)
        exports.write(self.manifest, self.state, os.fspath(path))

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._kept:
            self.delete()

    def __repr__(self) -> str:
        return f"<Snapshot {self.id} {self.backend} {self.fidelity} {self.path}>"


def check_path(path: str) -> str:
    """Return where a snapshot can be written, absolute: asked before there is anything to lose.

    Raises InvalidInput.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path):
        raise InvalidInput(
            f"snapshot path {path} exists already", remediation="remove it, or name another"
        )
    with _partial(path):
        return path


def write(
    path: str, capture: Callable[[str], None], about: SnapshotManifest, *, kept: bool
) -> Snapshot:
    """Have ``capture`` write the state, then put all of it at ``path`` in one rename.

    Raises InvalidInput where ``path`` cannot be, SandboxError where writing failed.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path):
        raise InvalidInput(
            f"snapshot path {path} exists already", remediation="remove it, or name another"
        )
    with _partial(path) as folder:
        state = os.path.join(folder, STATE)
        os.mkdir(state, 0o700)
        capture(state)
        manifest = msgspec.structs.replace(
            about,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            agentd=__version__,
            files=_digests(state),
        )
        with open(os.path.join(folder, MANIFEST), "xb", opener=paths.private) as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        if kept:
            _sync(folder)
        os.rename(folder, path)
    return Snapshot(manifest, path, kept=kept)


def load(path: str | os.PathLike[str]) -> Snapshot:
    """Return what lies at ``path``; its state is not looked at before ``verify``.

    Raises NotFound where there is none, SandboxError where it cannot be trusted.
    """
    given = os.fspath(path)
    path = os.path.abspath(given)
    try:
        _check_owner(path)
        with open(os.path.join(path, MANIFEST), "rb", opener=_plain) as file:
            data = file.read(MAX_MANIFEST + 1)
        if len(data) > MAX_MANIFEST:
            raise _damaged(path, f"its manifest is over {MAX_MANIFEST} bytes")
        manifest = typed.decoder(SnapshotManifest).decode(data)
    except OSError as error:
        raise _none(given, path, error) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its manifest cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise SandboxError(
            f"snapshot {path} has format {manifest.format}, and this agentd reads {FORMAT}",
            remediation=f"use agentd {manifest.agentd}, or take it again",
        )
    mounts = tuple(_packages(mount, path) for mount in manifest.spec.mounts)
    spec = msgspec.structs.replace(manifest.spec, mounts=mounts)
    return Snapshot(msgspec.structs.replace(manifest, spec=spec), path, kept=True)


def verify(snapshot: Snapshot) -> None:
    """Raises SandboxError unless its files are those that were written, to the last bit."""
    try:
        found = _digests(snapshot.state)
    except OSError as error:
        raise _damaged(snapshot.path, error.strerror or str(error)) from None
    expected = {file.path: file for file in snapshot.manifest.files}
    for file in found:
        if expected.pop(file.path, None) != file:
            raise _damaged(snapshot.path, f"{file.path} is not what was written")
    for name in expected:
        raise _damaged(snapshot.path, f"{name} is missing")


def check_spec(asked: SandboxSpec, kept: SandboxSpec) -> None:
    """Raises Refused unless both describe the same machine.

    Each sandbox may choose what the machine does not know of: the variables of its commands, the
    bounds of their time and output, the rules of its network, how much that moves, and the secrets
    that are used there. An image's user may be named, or left to the image, which is the same one.
    """
    if kept.user is None and kept.image != DEFAULT_IMAGE:
        asked = msgspec.structs.replace(asked, user=None)
    wanted, has = _machine(asked), _machine(kept)
    for name in has:
        if wanted[name] != has[name]:
            value = said(name, has[name]) if name in _LIMITS else has[name]
            raise Refused(
                f"{name} differs from the snapshot's: {value}",
                remediation=f"leave {name} to the snapshot",
            )


def _machine(spec: SandboxSpec) -> dict[str, Any]:
    fields = msgspec.structs.asdict(spec)
    # That it is the same image is checked as it is opened.
    fields |= dict.fromkeys(("isolation", "backend", "env", "image_digest", "template", "limits"))
    fields |= dict.fromkeys(("egress", "egress_bounds", "secrets"))  # the relay's to know
    limits = usual(spec.limits)
    return fields | {name: getattr(limits, name) for name in _LIMITS}


def _packages(mount: Mount, path: str) -> Mount:
    """Return the mount of packages, from where they are kept here. Ours have no other: a forged one
    could ask for the host's files. Raises SandboxError."""
    if mount != Mount(mount.source, PLACE, MountMode.RO, packages=mount.packages) or not (
        _DIGEST.fullmatch(mount.packages)
    ):
        raise _damaged(path, "it asks for host directories")
    from agentd.sandbox.packages import PackageStore  # late: few have any

    return msgspec.structs.replace(mount, source=PackageStore().root(mount.packages))


@contextlib.contextmanager
def _partial(path: str) -> Iterator[str]:
    """A folder beside ``path`` to fill; what is left of it at the end is removed, and by the next
    of that path what a process left that was killed."""
    parent, name = os.path.split(path)
    with os_errors_as(
        InvalidInput,
        f"no snapshot can be written to {path}",
        "name a path in a directory that exists and is yours",
    ):
        _sweep(parent, name)
        folder, lock = _locked_folder(parent, name)
    try:
        with locks.HeldLock(lock):
            yield folder
    except OSError as error:
        raise SandboxError(
            f"the snapshot could not be written to {path}",
            cause=error.strerror or str(error),
            remediation="make room, or name another path",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(parent: str, name: str) -> tuple[str, int]:
    """Make one, locked for as long as it is filled: -1 where folders have no locks."""
    while True:
        folder = tempfile.mkdtemp(prefix=f".{name}{_OURS}", dir=parent)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = locks.take_folder(folder)
            if os.path.isdir(folder):  # else somebody has swept it before it was locked
                return folder, lock
            locks.HeldLock(lock).close()


def _sweep(parent: str, name: str) -> None:
    """Remove what nobody fills any more; quiet where it cannot. Beside it lie other people's
    folders: by its name alone one is known to be ours."""
    left = re.compile(rf"\.{re.escape(name + _OURS)}[a-z0-9_]{{8}}")  # as mkdtemp(3) names them
    with contextlib.suppress(OSError):
        for each in os.scandir(parent):
            if not left.fullmatch(each.name) or not each.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError):
                if each.stat(follow_symlinks=False).st_uid == os.geteuid():
                    lock = locks.take_folder(each.path)
                    if lock >= 0:
                        with locks.HeldLock(lock):
                            shutil.rmtree(each.path, ignore_errors=True)


def _digests(state: str) -> tuple[StateFile, ...]:
    files = []
    for path in _files(state):
        with open(path, "rb", opener=_plain) as file:
            found = sparse.digest(file.fileno())
            size = os.fstat(file.fileno()).st_size
        files.append(StateFile(os.path.relpath(path, state), size, found))
    return tuple(sorted(files, key=lambda file: file.path))


def _files(folder: str) -> list[str]:
    """Regular files beneath, and nothing else but folders."""
    found: list[str] = []
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(entry.path)
                else:
                    raise SandboxError(f"snapshot file {entry.path} is not a plain file")
                if len(found) + len(pending) > MAX_FILES:
                    raise SandboxError(f"over {MAX_FILES} files in the snapshot {folder}")
    return found


def _plain(path: str, flags: int) -> int:
    """Opens regular files only: no link is followed, no FIFO waits for its writer."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(0, "not a plain file", path)
    return fd


def _check_owner(path: str) -> None:
    found = os.stat(path)
    if found.st_uid not in (os.geteuid(), 0) or found.st_mode & 0o022:
        raise SandboxError(
            f"snapshot {path} could have been written by others",
            remediation=f"if you trust it: chown -R {os.geteuid()} {path} && chmod go-w {path}",
        )


def _sync(folder: str) -> None:
    """Sync it before the rename makes it count (rename(2) orders nothing)."""
    for path in [*_files(folder), os.path.join(folder, STATE), folder]:
        paths.sync(path)


def _none(given: str, path: str, error: OSError) -> NotFound:
    why = error.strerror or ""
    if os.path.isdir(path) and error.errno == errno.ENOENT:
        why = f"it is a folder without {MANIFEST}"
    fix = (
        "name the folder that agentd run --save-snapshot, or the SDK's snapshot(), has written; "
        "one that a daemon keeps has an id of agentd snapshot ls, and is restored by agentd create"
    )
    if _DAEMONS_ID.fullmatch(given):
        fix = f"one that a daemon keeps is restored by it: agentd create --snapshot {given}"
    return NotFound(f"no snapshot at {path}", cause=why, remediation=fix)


def _damaged(path: str, why: str) -> SandboxError:
    return SandboxError(
        f"snapshot {path} is damaged", cause=why, remediation="take it again and delete this one"
    )
