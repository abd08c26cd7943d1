"""COPY and ADD: what they name, and the layer that it becomes."""

import contextlib
import hashlib
import io
import os
import posixpath
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from agentd.image.oci.building import archives
from agentd.image.oci.building.layer import Changed, LayerWriter
from agentd.image.oci.building.source import FileSource, Item, Unusable
from agentd.image.oci.building.view import RootView

_NUMBER = re.compile(r"[0-9]{1,10}")
_MODE = re.compile(r"0?[0-7]{3,4}")
_MOST_ID = (1 << 32) - 2
Owner = tuple[int, int]


class Inline(NamedTuple):
    """A file whose content stands in the Dockerfile: a heredoc."""

    name: str
    data: bytes


class NamedFiles(NamedTuple):
    """One word of a COPY: all files of it, the first of which is itself. ``archive``: ADD unpacks
    it."""

    name: str
    items: tuple[Item, ...]
    archive: bool = False


class Copy(NamedTuple):
    """``target`` is absolute, with a slash at its end for a folder; ``chown`` is USER[:GROUP]."""

    target: str
    named: tuple[NamedFiles, ...] = ()
    inline: tuple[Inline, ...] = ()
    words: int = 1  # that say what: of several, some may fit nothing
    chown: str = ""
    chmod: int | None = None

    def digest(self) -> str:
        """Return the digest of all that the layer depends on, beside the root it is for; times are
        left out, as another checkout has others."""
        told = [
            [(i.path, i.kind, i.mode, i.size, i.content, i.owner) for i in each.items] + [each.name]
            for each in self.named
        ]
        inline = [(each.name, each.data) for each in self.inline]
        whole = (self.target, told, inline, self.chown, self.chmod)
        return hashlib.sha256(msgspec.json.encode(_plain(whole))).hexdigest()


def _plain(value: object) -> object:
    """For JSON, names that are not UTF-8 among it."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").hex()
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def look(source: FileSource, words: Sequence[str], *, unpacks: bool) -> tuple[NamedFiles, ...]:
    """Return what a COPY's words mean, an ADD's with ``unpacks``: nothing is what a pattern may
    mean. Raises Unusable, BadPattern."""
    found = []
    for word in words:
        for path in source.matches(word):
            items = tuple(source.items(path))
            plain = items[0].kind == stat.S_IFREG
            archive = unpacks and plain and _is_archive(source, path)
            found.append(NamedFiles(path.rpartition("/")[2], items, archive))
    return tuple(found)


def check_mode(text: str) -> int:
    """Check it. Raises Unusable."""
    if not _MODE.fullmatch(text):
        raise Unusable(f"--chmod={text} is no octal mode, such as 755")
    return int(text, 8)


def write(copy: Copy, source: FileSource | None, view: RootView, layer: LayerWriter) -> None:
    """Write the layer. Raises Unusable, ImageError."""
    _Writing(copy, source, view, layer).run()


class _Writing:
    def __init__(
        self, copy: Copy, source: FileSource | None, view: RootView, layer: LayerWriter
    ) -> None:
        self._copy, self._source, self._view, self._layer = copy, source, view, layer
        self._owner = owner_of(copy.chown, view)
        self._made: dict[str, int] = {}  # what the layer has by now, and its kind

    def run(self) -> None:
        copy = self._copy
        times = [item.modified for each in copy.named for item in each.items]
        self._time = max(times, default=0)
        target = self._view.resolve(copy.target.strip("/"))
        whole = copy.target.endswith("/") or self._is_folder(target)
        count = len(copy.named) + len(copy.inline)
        if max(count, copy.words) > 1 and not whole:
            raise Unusable(f"several files go to {copy.target}, which is no folder: end it with /")
        if not count:  # of a WORKDIR, which is the folder alone
            self._folders(target)
        for named in copy.named:
            if named.archive:
                self._folders(target)
                self._unpack(named.items[0], target)
            elif named.items[0].kind == stat.S_IFDIR:
                self._tree(named, target)
            else:
                self._file(named.items[0], _inside(target, named.name) if whole else target)
        for each in copy.inline:
            path = self._behind(_inside(target, each.name) if whole else target)
            self._above(path)
            mode = 0o644 if copy.chmod is None else copy.chmod
            self._check_plain(path)
            data = io.BytesIO(each.data)
            self._layer.add_file(path, mode, self._owner, self._time, len(each.data), data)

    def _tree(self, named: NamedFiles, target: str) -> None:
        self._folders(target)
        for item in named.items[1:]:
            path = self._behind_folder(_inside(target, item.path))
            if item.kind == stat.S_IFDIR:
                path = self._view.resolve(path)
                if not self._is_folder(path):
                    self._folder(path, self._mode(item), item.modified, self._whose(item))
            elif item.kind == stat.S_IFREG:
                self._file(item, path)
            else:
                self._above(path)
                self._check_plain(path)
                mode = 0o777 if item.kind == stat.S_IFLNK else self._mode(item)
                self._layer.add(
                    path, item.kind, mode, self._whose(item), item.modified, target=item.content
                )
                self._made[path] = item.kind

    def _file(self, item: Item, path: str) -> None:
        path = self._behind(path) if not item.path else path
        self._above(path)
        self._check_plain(path)
        assert self._source is not None  # noqa: S101  (only heredocs have none)
        with self._source.opened(item.source) as fd, open(fd, "rb", closefd=False) as data:
            if os.fstat(fd).st_size != item.size:
                raise Changed(f"{item.source} was changed while it was copied")
            found = self._layer.add_file(
                path, self._mode(item), self._whose(item), item.modified, item.size, data
            )
        if found != item.content:
            raise Changed(f"{item.source} was changed while it was copied")
        self._made[path] = item.kind

    def _unpack(self, item: Item, target: str) -> None:
        """Of a copy, which is what its digest says: the file itself may change meanwhile."""
        assert self._source is not None  # noqa: S101  (only heredocs have none)
        with tempfile.TemporaryFile(dir=os.path.dirname(self._layer.path)) as copy:
            with self._source.opened(item.source) as fd, open(fd, "rb", closefd=False) as data:
                found = archives.copied(data, copy, item.size)
            if found != item.content:
                raise Changed(f"{item.source} was changed while it was copied")
            try:
                for archive, member in archives.members(copy):
                    self._member(archive, member, target)
            except archives.NoArchive as error:
                raise Unusable(f"{item.source} cannot be unpacked: {error}") from error
            except Changed as error:
                raise Unusable(f"{item.source} cannot be unpacked: it ends too early") from error

    def _member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, target: str) -> None:
        inside = _member_path(member.name)
        path = self._behind_folder(_inside(target, inside)) if inside else target
        owner = self._owner if self._copy.chown else (member.uid, member.gid)
        mode = member.mode & 0o7777 if self._copy.chmod is None else self._copy.chmod
        when = int(member.mtime)
        if member.isdir():
            if inside and not self._is_folder(path):
                self._above(path)
                self._check_plain(path)
                self._layer.add(path, stat.S_IFDIR, mode, owner, when)
                self._made[path] = stat.S_IFDIR
            return
        if not inside or self._is_folder(path):
            raise Unusable(f"{member.name!r} of the archive would replace a folder")
        self._above(path)
        if member.issym():
            self._layer.add(path, stat.S_IFLNK, 0o777, owner, when, target=member.linkname)
            self._made[path] = stat.S_IFLNK
        elif member.islnk():
            linked = self._behind_folder(_inside(target, _member_path(member.linkname)))
            if self._made.get(linked) != stat.S_IFREG:
                raise Unusable(f"{member.name!r} is a link to {member.linkname!r}, not before it")
            self._layer.add_hard_link(path, linked, owner, mode)
            self._made[path] = stat.S_IFREG
        elif member.isreg():
            data = archive.extractfile(member)
            assert data is not None  # noqa: S101  (it is a plain file)
            self._layer.add_file(path, mode, owner, when, member.size, data)  # type: ignore[arg-type]
            self._made[path] = stat.S_IFREG
        elif member.isfifo():
            self._layer.add(path, stat.S_IFIFO, mode, owner, when)
            self._made[path] = stat.S_IFIFO
        else:
            raise Unusable(f"{member.name!r} of the archive is a device")

    def _mode(self, item: Item) -> int:
        return item.mode if self._copy.chmod is None else self._copy.chmod

    def _whose(self, item: Item) -> Owner:
        return self._owner if self._copy.chown else item.owner

    def _behind(self, path: str) -> str:
        """Behind links of the root, but for those that this very layer has."""
        return path if path in self._made else self._view.resolve(path)

    def _behind_folder(self, path: str) -> str:
        """Behind the links on the way to its last part. Raises Unusable where this layer has a
        link there."""
        folder, _, name = path.rpartition("/")
        for above in _parents(path):
            if self._made.get(above, stat.S_IFDIR) != stat.S_IFDIR:
                raise Unusable(f"/{path} lies in /{above}, which is no folder")
        return _inside(self._view.resolve(folder), name)

    def _is_folder(self, path: str) -> bool:
        made = self._made.get(path)
        return made == stat.S_IFDIR if made is not None else self._view.is_folder(path)

    def _folders(self, path: str) -> None:
        for each in [*_parents(path), path]:
            if not self._is_folder(each):
                self._folder(each, 0o755, self._time, self._owner)

    def _folder(self, path: str, mode: int, when: int, owner: Owner) -> None:
        self._above(path)
        self._check_plain(path, folder=True)
        self._layer.add(path, stat.S_IFDIR, mode, owner, when)
        self._made[path] = stat.S_IFDIR

    def _above(self, path: str) -> None:
        for each in _parents(path):
            if not self._is_folder(each):
                self._check_plain(each, folder=True)
                self._layer.add(each, stat.S_IFDIR, 0o755, self._owner, self._time)
                self._made[each] = stat.S_IFDIR

    def _check_plain(self, path: str, *, folder: bool = False) -> None:
        """A file takes the place of a file, a folder that of nothing."""
        if not folder and self._is_folder(path):
            raise Unusable(f"/{path} is a folder, and a file cannot take its place")
        node = self._view.node(path)
        if folder and (path in self._made or node is not None):
            raise Unusable(f"/{path} is there, and no folder")


def owner_of(text: str, view: RootView) -> Owner:
    """Return whom ``USER[:GROUP]`` means, root if empty; names are the root's. Raises Unusable."""
    if not text:
        return 0, 0
    user, colon, group = text.partition(":")
    line = None if _NUMBER.fullmatch(user) else _line(view.read("etc/passwd"), user, 4)
    if _NUMBER.fullmatch(user):
        uid, gid = int(user), int(user)
    elif line is not None:
        uid, gid = int(line[2]), int(line[3])
    elif user == "root":
        uid, gid = 0, 0
    else:
        raise Unusable(f"--chown={text}: there is no user {user!r} in /etc/passwd")
    if colon:
        line = None if _NUMBER.fullmatch(group) else _line(view.read("etc/group"), group, 3)
        if _NUMBER.fullmatch(group):
            gid = int(group)
        elif line is not None:
            gid = int(line[2])
        elif group == "root":
            gid = 0
        else:
            raise Unusable(f"--chown={text}: there is no group {group!r} in /etc/group")
    if max(uid, gid) > _MOST_ID:
        raise Unusable(f"--chown={text}: a number is too large")
    return uid, gid


def known(user: str, view: RootView) -> str:
    """Return a USER[:GROUP] that the root knows; empty, which is root, for another."""
    with contextlib.suppress(Unusable):
        owner_of(user, view)
        return user
    return ""


def _line(text: str, name: str, least: int) -> list[str] | None:
    for line in text.splitlines():
        fields = line.split(":")
        numbers = fields[2:least]
        if fields[0] == name and len(fields) >= least and all(map(_NUMBER.fullmatch, numbers)):
            return fields
    return None


def _is_archive(source: FileSource, path: str) -> bool:
    with source.opened(path) as fd, open(fd, "rb", closefd=False) as data:
        return archives.is_archive(data)


def _member_path(name: str) -> str:
    """Raises Unusable where it leads out of where the archive is unpacked."""
    if ".." in name.split("/"):
        raise Unusable(f"{name!r} of the archive leads out of where it is unpacked")
    path = posixpath.normpath(name.strip("/"))
    return "" if path == "." else path


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])
