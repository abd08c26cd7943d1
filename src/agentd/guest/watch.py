"""fs.watch: changes under a path, as they happen; docs/guest-protocol.md.

Not debounced. A ``move`` is told of the old path and of the new one. A file that is watched itself
is followed by its path: another that takes its place is a ``modify`` of it. In a directory that has
just appeared an entry may be told twice: once by the kernel and once by the look that finds what
was made before the watch was in place.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from itertools import islice

from agentd.guest.loop import READ, Timer
from agentd.guest.operation import Channel, ChannelOperation, Quiet, RequestError, get_bool
from agentd.guest.resolve import get_path, open_path
from agentd.guest.stepped import plain
from agentd.linux import inotify
from agentd.linux.inotify import Inotify, InotifyEvent

# About 1 KiB of kernel memory each; the kernel's own default limit is as high at the lowest.
MAX_WATCHES = 8192
# Entries looked at before the loop has its turn.
SLICE = 256
# Folders that are missed as it begins, and told of one by one: of more the root is told.
MAX_MISSED = 64

_CHANGES = inotify.IN_CREATE | inotify.IN_MODIFY | inotify.IN_DELETE
_MOVES = inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO
_SELF = inotify.IN_DELETE_SELF | inotify.IN_MOVE_SELF
# Of a file whose name went to another: while somebody has it open, it is not gone.
_REPLACED = inotify.IN_ATTRIB | inotify.IN_DELETE_SELF | inotify.IN_IGNORED
_MASK = _CHANGES | _MOVES | inotify.IN_EXCL_UNLINK
_BELOW = _MASK | inotify.IN_ONLYDIR | inotify.IN_DONT_FOLLOW

_KINDS = (
    (inotify.IN_CREATE, "create"),
    (inotify.IN_MODIFY, "modify"),
    (inotify.IN_DELETE | inotify.IN_DELETE_SELF, "delete"),
    (_MOVES | inotify.IN_MOVE_SELF, "move"),
)


class Watch(Quiet):
    """While the connection's buffer is full it does not read: the kernel's queue then overflows."""

    def __init__(self, channel: Channel, path: str, recursive: bool, watches: Inotify) -> None:
        self._channel = channel
        self._path = path
        self._recursive = recursive
        self._inotify = watches
        self._paths: dict[int, str] = {}
        # Directories to look into, and whether what is in them is news.
        self._unseen: deque[tuple[str, bool]] = deque()
        self._look: Generator[tuple[str, bool, bool], None, None] | None = None
        self._timer: Timer | None = None
        self._began = False
        self._missed: list[str] = []  # told once it has begun
        self._full = False
        self._closed = False
        self._file: os.stat_result | None = None  # that is watched itself
        self._root = self._watch_root()

    def _watch_root(self) -> int:
        """Raises OSError."""
        found = os.stat(self._path)
        self._file = None if stat.S_ISDIR(found.st_mode) else found
        attributes = inotify.IN_ATTRIB if self._file else 0  # a folder tells those of its files
        wd = self._inotify.add(self._path, _MASK | _SELF | attributes)
        self._paths[wd] = self._path
        return wd

    def start(self) -> ChannelOperation | None:
        if self._recursive and os.path.isdir(self._path):
            self._unseen.append((self._path, False))
        self._advance()
        return None if self._closed else self

    def on_credit(self) -> None:
        if not self._closed and self._timer is None:
            self._advance()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._unseen.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._look is not None:
            self._look.close()
        self._channel.loop.forget(self._inotify.fileno())
        self._inotify.close()

    def _advance(self) -> None:
        """Look into what is unseen a slice at a time, then wait for events."""
        self._timer = None
        if self._channel.credit() <= 0:
            self._channel.loop.forget(self._inotify.fileno())
            return
        left = SLICE
        while left > 0 and self._looks():
            left -= self._look_on(left)
        if not (self._began or self._closed or self._looks()):
            self._began = True
            self._channel.event("watching")
            for path in self._missed:
                self._change("overflow", path)
        self._wait()

    def _looks(self) -> bool:
        return self._look is not None or bool(self._unseen)

    def _look_on(self, most: int) -> int:
        if self._look is None:
            self._look = self._looking(*self._unseen.popleft())
        found = list(islice(self._look, most))
        if len(found) < most:
            self._look = None
        for path, is_directory, news in found:
            if news:
                self._change("create", path)
            if is_directory:
                self._add(path, news)
        return len(found) + 1

    def _wait(self) -> None:
        if self._closed:
            return
        if self._began:  # what happens before is told behind "watching"
            self._channel.loop.watch(self._inotify.fileno(), READ, self._ready)
        if self._looks():
            self._timer = self._channel.loop.after(0, self._advance)

    def _ready(self, _: int) -> None:
        try:
            events = self._inotify.read()
        except OSError as error:
            self.close()
            self._channel.fail(error)
            return
        for event in events:
            if not self._closed:
                self._handle(event)
        if not self._closed and self._timer is None:
            self._advance()

    def _handle(self, event: InotifyEvent) -> None:
        if event.mask & inotify.IN_Q_OVERFLOW:
            self._change("overflow", self._path)
            return
        directory = self._paths.get(event.wd)
        if directory is None:
            return  # of a watch that has been taken off
        if event.mask & _REPLACED and self._replaced(event):
            self._change("modify", directory)
            return
        path = f"{directory.rstrip('/')}/{event.name}" if event.name else directory
        kind = next((kind for mask, kind in _KINDS if event.mask & mask), None)
        if kind is not None:
            self._change(kind, path)
        if event.mask & inotify.IN_IGNORED:
            del self._paths[event.wd]
            self._full = False
            if event.wd == self._root and not self._closed:
                self.close()
                self._channel.finish("end")
        elif self._recursive and event.mask & inotify.IN_ISDIR and event.name:
            self._follow(event.mask, path)

    def _replaced(self, event: InotifyEvent) -> bool:
        """Watch the file that has taken the place of the one that was watched. Return whether there
        is one: where that is gone, it may have its number, too."""
        if event.wd != self._root or self._file is None:
            return False
        try:
            found = os.stat(self._path)
            same = event.mask & inotify.IN_ATTRIB and os.path.samestat(found, self._file)
            if same or stat.S_ISDIR(found.st_mode):
                return False
            self._root = self._watch_root()
        except OSError:
            return False
        if event.wd != self._root:
            del self._paths[event.wd]
            with suppress(OSError):  # the kernel has taken it off
                self._inotify.remove(event.wd)
        return True

    def _follow(self, mask: int, path: str) -> None:
        if mask & inotify.IN_MOVED_FROM:
            self._drop(path)
        elif mask & (inotify.IN_CREATE | inotify.IN_MOVED_TO):
            self._add(path, True)

    def _drop(self, path: str) -> None:
        """A directory has moved away: what is watched in it has other paths now."""
        below = f"{path}/"
        gone = [wd for wd, at in self._paths.items() if at == path or at.startswith(below)]
        for wd in gone:
            del self._paths[wd]
            with suppress(OSError):  # it was removed in the meantime
                self._inotify.remove(wd)
        self._full = self._full and not gone

    def _add(self, path: str, news: bool) -> None:
        if self._closed or self._full:
            return
        try:
            if len(self._paths) >= MAX_WATCHES:
                raise OSError(errno.ENOSPC, "too many watches")
            wd = self._inotify.add(path, _BELOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # gone already, or a link by now
            # Told once, until a watch is free again: changes below are missed from now on.
            self._full = error.errno == errno.ENOSPC
            self._change("overflow", path)
            return
        self._paths[wd] = path
        self._unseen.append((path, news))

    def _looking(self, path: str, news: bool) -> Generator[tuple[str, bool, bool], None, None]:
        """(path, is a directory, is news) of every entry. It tells nobody: telling may close us."""
        nofollow = 0 if path == self._path else os.O_NOFOLLOW
        # One that is gone in the meantime, or not to be read, has events of its own.
        with suppress(OSError):
            fd = open_path(path, os.O_RDONLY | os.O_DIRECTORY | nofollow)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        at = f"{path.rstrip('/')}/{entry.name}"
                        yield at, entry.is_dir(follow_symlinks=False), news
            finally:
                os.close(fd)

    def _change(self, kind: str, path: str) -> None:
        if not self._began:  # an overflow: what the kernel tells is read later
            self._missed = [*self._missed, path] if len(self._missed) < MAX_MISSED else [self._path]
        elif not self._closed:
            self._channel.event("change", kind=kind, path=path)


def start(channel: Channel, request: dict[str, object]) -> ChannelOperation | None:
    path = get_path(request)
    recursive = get_bool(request, "recursive")
    os.close(open_path(path, os.O_PATH))
    try:
        watches = Inotify()
    except OSError as error:
        raise _limit(error, "max_user_instances") from None
    try:
        watch = Watch(channel, path, recursive, watches)
    except OSError as error:
        watches.close()
        if error.errno == errno.ENOSPC:
            raise _limit(error, "max_user_watches") from None
        raise OSError(error.errno, error.strerror, path) from None
    return watch.start()


def _limit(error: OSError, name: str) -> RequestError:
    return RequestError(
        f"cannot watch: {error.strerror}: end a watch or raise fs.inotify.{name}", error.errno or 0
    )


OPERATIONS = {"fs.watch": plain(start)}
