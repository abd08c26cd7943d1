"""Pushes an image of the store: into a layout or an archive on disk by us, to a registry by skopeo.

Its manifest and layers are as they are in the store, so that its digest stays.
"""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import tarfile
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import msgspec

from agentd.image.model import Corrupt, ImageError, Progress
from agentd.image.oci import archives, layout, registry, tools
from agentd.image.oci.pull import SECONDS, explained
from agentd.image.oci.source import ImageSource, parse
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import (
    MANIFEST,
    REF_NAME,
    Descriptor,
    OciImage,
    OciIndex,
    check_digest,
    decode,
    encode,
)
from agentd.image.oci.work import WorkFolder
from agentd.linux import locks, process
from agentd.linux.replacing import replacing
from agentd.model.errors import InvalidInput

FORMS = ("oci:./layout:tag", "oci-archive:./image.tar", "docker://HOST/NAME:TAG")
_DEFAULT_TAG = "latest"
_LAYOUT = "/mnt/layout"
_PIECE = 1 << 20
_LOCK_SECONDS = 60.0  # that another process may write the index of a layout


def push(
    name: str,
    target: str,
    progress: Progress | None = None,
    *,
    seconds: float = SECONDS,
    insecure: bool = False,
    net: str | None = None,
) -> OciImage:
    """Push an image, and return it. ``insecure``: to a registry without TLS, or whose certificate
    nobody vouches for. ``net``: whom else it may lead to, as of ``pull``.

    Raises InvalidInput, NotFound, Unavailable (skopeo is missing), Corrupt, ImageError.
    """
    wanted = _target(target)
    store = OciStore()
    say = progress or (lambda what, done, steps: None)
    try:
        with store.work() as work:
            image = store.hold(name, work)
            pushing = _Push(image, wanted, work)
            say(f"pushing {image.name} to {wanted.text}", 1, 1)
            if wanted.transport == "docker":
                pushing.to_registry(seconds, insecure=insecure, net=net)
            else:
                pushing.to_disk()
    except OSError as error:
        raise explained(error, store, "pushed") from error
    return image


def archive(image: OciImage, path: str, work: WorkFolder) -> None:
    """Write an image whose blobs are ``work``'s as ``oci-archive:PATH``. Raises
    InvalidInput, Corrupt, ImageError."""
    target = ImageSource("oci-archive", os.path.abspath(path))
    _Push(image, target, work).to_disk()


def check_archive(path: str) -> None:
    """Check where it is to be. Raises InvalidInput where an archive cannot be written there."""
    place = os.path.abspath(path)
    if os.path.isdir(place):
        raise InvalidInput(f"{place} is a directory", remediation="name a file")
    if not _may_be_replaced(place):
        raise InvalidInput(
            f"{place} exists, and is no archive of an image",
            remediation="name another file, or remove that one first",
        )


def unwritten(place: str, error: OSError) -> ImageError:
    """Return what an archive at ``place`` fails of."""
    return ImageError(
        f"{place} cannot be written: {error.strerror}",
        remediation="name a place that is yours, with room for the image",
    )


class _Push:
    def __init__(self, image: OciImage, target: ImageSource, work: WorkFolder) -> None:
        """``work`` has the image's blobs."""
        self._image, self._target, self._work = image, target, work
        self._tag = target.tag or _DEFAULT_TAG
        size = os.stat(self._path(image.digest)).st_size
        self._manifest = Descriptor(MANIFEST, image.digest, size, {REF_NAME: self._tag})
        self._blobs = {b.digest: b for b in (*image.blobs, self._manifest)}

    def to_disk(self) -> None:
        try:
            if self._target.transport == "oci":
                self._to_layout()
            else:
                self._to_archive()
        except OSError as error:
            raise unwritten(self._target.place, error) from error

    def _to_layout(self) -> None:
        """Into a directory that is a layout, or becomes one; an image of that tag is replaced."""
        place = self._target.place
        os.makedirs(place, exist_ok=True)
        held = os.listdir(place)
        if held and "oci-layout" not in held:
            raise InvalidInput(
                f"{place} is no OCI layout, and not empty", remediation="name another directory"
            )
        with layout.folder(place) as top:
            with _replacing("oci-layout", top) as file:  # killed from here on, it can go on
                file.write(layout.VERSION)
            os.makedirs(layout.blobs_of(place), exist_ok=True)
            with layout.folder(place, *layout.BLOBS) as blobs:
                for blob in self._blobs.values():
                    self._copy(blob, blobs)
            # Who pushes another tag meanwhile writes the index, too: one of them would be lost.
            lock = locks.take_within(place, _LOCK_SECONDS, locks.take_folder)
            with locks.HeldLock(lock):
                index = self._index(top)
                with _replacing("index.json", top) as file:
                    file.write(index)

    def _to_archive(self) -> None:
        """A tar archive with a layout; one of an image that is there is replaced."""
        check_archive(self._target.place)
        with replacing(self._target.place, 0o666 & ~process.umask(), synced=True) as file:
            self._archive(file)

    def to_registry(self, seconds: float, *, insecure: bool, net: str | None) -> None:
        layout.write_index(self._work.layout, self._manifest)
        layout.open_to_all(self._work.layout)
        from agentd.image.oci.network import fetching

        access = registry.access(self._target, insecure=insecure, side="dest")
        files = access.files | {registry.POLICY: registry.ANY}
        with fetching(self._target, net, files, "push") as reached:
            tools.run(
                [
                    *("skopeo", "--policy", registry.POLICY, "copy", *access.words),
                    *("--preserve-digests", f"oci:{_LAYOUT}:{layout.TAG}", self._target.text),
                ],
                work=self._work.make("pushed"),
                reads={_LAYOUT: self._work.layout},
                files=files,
                net=reached,
                seconds=seconds,
            )

    def _path(self, digest: str) -> str:
        return os.path.join(self._work.blobs, check_digest(digest))

    def _archive(self, file: BinaryIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, told in (("oci-layout", layout.VERSION), ("index.json", self._index(None))):
                _add(archive, name, len(told), io.BytesIO(told))
            for digest, blob in self._blobs.items():
                with open(self._path(digest), "rb") as data:
                    self._check(data, blob)
                    _add(archive, f"blobs/sha256/{check_digest(digest)}", blob.size, data)

    def _copy(self, blob: Descriptor, blobs: int) -> None:
        name = check_digest(blob.digest)
        with contextlib.suppress(Corrupt):  # it is another's, or not there yet
            layout.check_blob(blob, blobs)
            return
        with open(self._path(blob.digest), "rb") as data, _replacing(name, blobs) as file:
            self._check(data, blob)
            shutil.copyfileobj(data, file, _PIECE)

    def _check(self, data: io.BufferedReader, blob: Descriptor) -> None:
        """Raises Corrupt for what is damaged; ``data`` is at its begin again then."""
        total = hashlib.file_digest(data, "sha256")
        if f"sha256:{total.hexdigest()}" != blob.digest:
            raise Corrupt(
                f"the image {self._image.name!r} is damaged",
                cause=f"its blob {blob.digest}",
                remediation="pull or build it again",
            )
        data.seek(0)

    def _index(self, top: int | None) -> bytes:
        """With the images of other tags that the layout has."""
        if top is None or "index.json" not in os.listdir(top):
            return encode(OciIndex((self._manifest,)))
        found: dict[str, Any] = decode(layout.read("index.json", top), dict[str, Any], "index")
        others = found.get("manifests")
        kept = [
            each
            for each in (others if isinstance(others, list) else [])
            if isinstance(each, dict) and _tag_of(each) != self._tag
        ]
        found |= {"schemaVersion": 2, "manifests": [*kept, msgspec.to_builtins(self._manifest)]}
        return msgspec.json.encode(found)


def _target(text: str) -> ImageSource:
    """Raises InvalidInput, with the forms that there are."""
    wanted = parse(text) if text.partition(":")[0] in ("oci", "oci-archive", "docker") else None
    if wanted is None or "@" in (wanted.place if wanted.transport == "docker" else ""):
        raise InvalidInput(
            f"{text[:200]!r} is no place to push to", remediation=f"use one of: {', '.join(FORMS)}"
        )
    return wanted


def _may_be_replaced(path: str) -> bool:
    """Whether nothing is lost: it is not there, empty, or an archive of an image."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and (not status.st_size or bool(archives.kinds(path)))


def _tag_of(told: dict[str, Any]) -> object:
    notes = told.get("annotations")
    return notes.get(REF_NAME) if isinstance(notes, dict) else None


def _add(archive: tarfile.TarFile, name: str, size: int, data: BinaryIO) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, data)


def _replacing(name: str, folder: int) -> AbstractContextManager[BinaryIO]:
    """Of a folder that is open: through no link, whatever its path leads to by now."""
    return replacing(f"/proc/self/fd/{folder}/{name}", 0o644, synced=True)
