"""What a sandbox changed of its image's root, out of its kept files, as a layer of an image.

Owners are as the sandbox has them. What the store keeps flat (``user.rootlesscontainers``) gets the
owner that it had; without a range of ids what was there before keeps its own.
"""

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from agentd.guest.zygote.image_root import covered, etc_at
from agentd.image.oci.building.layer import LayerWriter
from agentd.image.oci.owners import ATTRIBUTE, owner_of
from agentd.linux.inside import node_at
from agentd.model.errors import SandboxError
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.kept import KeptFile

_OPAQUE = "user.overlay.opaque"
_OF_OVERLAYS = "user.overlay."
_PIECE = 1 << 20
_KINDS = {"folder": stat.S_IFDIR, "link": stat.S_IFLNK, "pipe": stat.S_IFIFO, "file": stat.S_IFREG}
# Where changes lie on a sandbox's disk (``zygote.image_root``, ``linux.overlay``), and what of.
_UPPER = (b"r/u", b"")
#: Of the steps of a build: all of the root is the image's.
OF_A_STEP = (_UPPER,)
#: Of other sandboxes, which have folders of their own there (``zygote.disk``).
OF_A_SANDBOX = (
    *(_UPPER, (b"w", b"workspace"), (b"h", b"home/sandbox"), (b"t", b"tmp")),
    *((b"iw/u", b"workspace"), (b"ih/u", b"home/sandbox"), (b"it/u", b"tmp")),
)
# Ours in every sandbox, whatever the image has there.
_OURS = frozenset((b"etc/hosts", b"etc/resolv.conf", b"dev", b"proc", b"sys", b".agentd"))
_ETC = b"etc/"


class Exported(NamedTuple):
    """``root`` is the path of the image's root; ``uid`` the only one of the sandbox, None where it
    has a range of them. ``places`` say what on its disk is where in the root."""

    folder: str
    root: str
    uid: int | None
    places: tuple[tuple[bytes, bytes], ...] = OF_A_STEP


def write_layer(exported: Exported, layer: LayerWriter) -> None:
    """Raises SandboxError, ImageError, OSError."""
    root = os.open(exported.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with (
            open(os.path.join(exported.folder, kept.ENTRIES), "rb") as entries,
            open(os.path.join(exported.folder, kept.CONTENT), "rb") as content,
        ):
            _Layering(exported, root, content, layer).write(entries)
    except kept.DamagedFiles as error:
        raise SandboxError("the sandbox's files cannot be read", cause=str(error)) from error
    finally:
        os.close(root)


class _Layering:
    def __init__(
        self, exported: Exported, root: int, content: BinaryIO, layer: LayerWriter
    ) -> None:
        self._uid, self._root, self._places = exported.uid, root, exported.places
        self._content, self._layer = content, layer
        bare = exported.places == OF_A_STEP
        etc = os.fsencode(etc_at(root, covered(bare=bare)))  # an image may have a link there
        linked = (path.removeprefix(_ETC) for path in _OURS if path.startswith(_ETC))
        self._ours = _OURS | {(etc + b"/" + name).strip(b"/") for name in linked}

    def write(self, entries: BinaryIO) -> None:
        path: list[bytes] = []
        place: tuple[bytes, KeptFile] | None = None  # one of ours, in which nothing was met yet
        for entry in kept.read(entries):
            del path[entry.depth - 1 :]
            path.append(entry.name)
            whole = b"/".join(path)
            inside = self._inside(whole)
            if inside is None or self._is_ours(inside):
                if entry.kind == "file":
                    self._content.seek(sum(length for _, length in entry.data), os.SEEK_CUR)
                top = dict(self._places).get(whole, b"")
                place = (top, entry) if top else None
                continue
            if place is not None and self._was(os.fsdecode(place[0])) != stat.S_IFDIR:
                self._entry(os.fsdecode(place[0]), place[1])
            place = None
            self._entry(os.fsdecode(inside), entry)

    def _is_ours(self, path: bytes) -> bool:
        return path in self._ours or path.split(b"/")[0] in self._ours

    def _inside(self, path: bytes) -> bytes | None:
        """Where it is in the root; None for what is not in it."""
        for place, where in self._places:
            if path.startswith(place + b"/"):
                rest = path[len(place) + 1 :]
                return where + b"/" + rest if where else rest
        return None

    def _entry(self, path: str, entry: KeptFile) -> None:
        owner = self._owner(path, entry)
        when = entry.modified // 1_000_000_000
        attributes = {
            name: value
            for name, value in entry.attributes.items()
            if not name.startswith(_OF_OVERLAYS) and name != ATTRIBUTE
        }
        if entry.kind == "whiteout":
            self._layer.whiteout(path)
        elif entry.kind == "file":
            data: BinaryIO = _Data(self._content, entry)  # type: ignore[assignment]
            self._layer.add_file(
                path, entry.mode, owner, when, entry.size, data, attributes=attributes
            )
        elif entry.kind == "hard link":
            target = os.fsdecode(self._inside(entry.target) or b"")
            self._layer.add_hard_link(path, target, owner, entry.mode)
        else:
            target = os.fsdecode(entry.target) if entry.kind == "link" else ""
            self._layer.add(
                path, _KINDS[entry.kind], entry.mode, owner, when,
                target=target, attributes=attributes,
            )  # fmt: skip
            if entry.kind == "folder" and entry.attributes.get(_OPAQUE) == b"y":
                self._layer.opaque(path)

    def _owner(self, path: str, entry: KeptFile) -> tuple[int, int]:
        known = owner_of(entry.attributes.get(ATTRIBUTE, b""))
        if known is not None and not (entry.uid or entry.gid):
            return known
        if self._uid is None:
            return entry.uid, entry.gid
        if self._uid and self._was(path) == _KINDS.get(entry.kind):
            return 0, 0
        return self._uid, self._uid

    def _was(self, path: str) -> int | None:
        """The kind of what the image has there."""
        node = node_at(self._root, path)
        return None if node is None else node.kind


class _Data:
    """The bytes of one file, its holes as zeros, in order."""

    def __init__(self, content: BinaryIO, entry: KeptFile) -> None:
        self._pieces = self._read(content, entry)
        self._rest = b""

    def read(self, size: int) -> bytes:
        found = self._rest
        while len(found) < size and (piece := next(self._pieces, b"")):
            found += piece
        found, self._rest = found[:size], found[size:]
        return found

    @staticmethod
    def _read(content: BinaryIO, entry: KeptFile) -> Iterator[bytes]:
        place = 0
        for start, length in (*entry.data, (entry.size, 0)):
            for size in _sizes(start - place):
                yield bytes(size)
            for size in _sizes(length):
                data = content.read(size)
                if len(data) < size:
                    raise kept.DamagedFiles("its data has no end")
                yield data
            place = start + length


def _sizes(length: int) -> Iterator[int]:
    while length > 0:
        yield min(length, _PIECE)
        length -= _PIECE
