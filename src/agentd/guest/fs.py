"""fs.stat, fs.list, fs.mkdir, fs.move and fs.remove; docs/guest-protocol.md.

An entry is described, never followed: a symlink is a ``link`` with its ``target``.
"""

import errno
import os
import stat

from agentd.guest.operation import Channel, ChannelOperation, RequestError, get_bool, get_int
from agentd.guest.removal import remove_tree
from agentd.guest.resolve import get_path, make_directory, naming, open_parent, open_path
from agentd.guest.stepped import SteppedOperation, Steps, plain

MAX_ENTRIES = 1000
# JSON bytes of one ``entries`` event: less than a frame's 1 MiB by more than an entry's bound.
MAX_BATCH = 900_000
# Bytes of all entries of one listing. A link's target has up to 4095, and nobody asked for so many.
MAX_LISTING = 32 << 20

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def describe(path: str, status: os.stat_result, target: str | None) -> dict[str, object]:
    """Tells an entry's ``size`` in bytes, ``mode`` (permission bits), ``mtime`` in Unix seconds."""
    entry: dict[str, object] = {
        "name": _name(path),
        "path": path,
        "type": type_name(status.st_mode),
        "size": status.st_size,
        "mode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime,
    }
    if target is not None:
        entry["target"] = target
    return entry


def _name(path: str) -> str:
    """Its last part; of one that ends in dots that of where it leads, by its text."""
    name = path.rstrip("/").rpartition("/")[2]
    if name in {".", ".."}:
        name = os.path.basename(os.path.abspath(path))
    return name or "/"


def type_name(mode: int) -> str:
    return _TYPES.get(stat.S_IFMT(mode), "file")


def start_stat(channel: Channel, request: dict[str, object]) -> None:
    path = get_path(request)
    fd = open_path(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        status = os.fstat(fd)
        # An empty name is the link that the descriptor stands for (Linux 2.6.39).
        target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else None
    finally:
        os.close(fd)
    channel.finish("result", entry=describe(path, status, target))


def start_list(channel: Channel, request: dict[str, object]) -> ChannelOperation | None:
    path = get_path(request)
    fd = open_path(path, os.O_RDONLY | os.O_DIRECTORY)
    return SteppedOperation(channel, _entries(path, fd), fd).start()


def start_mkdir(channel: Channel, request: dict[str, object]) -> None:
    path = get_path(request)
    mode = get_int(request, "mode", 0o755, 0, 0o1777)
    parents = get_bool(request, "parents")
    parent, name = open_parent(path, parents=parents)
    try:
        with naming(path):
            make_directory(parent, name, mode)
    except FileExistsError:
        if not parents or not _is_directory(parent, name):
            raise
    finally:
        os.close(parent)
    channel.finish("result")


def start_move(channel: Channel, request: dict[str, object]) -> None:
    path, to = get_path(request), get_path(request, "to")
    source, old = open_parent(path)
    try:
        target, new = open_parent(to)
        try:
            with naming(f"{path} -> {to}"):
                os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)
        finally:
            os.close(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise RequestError(
            f"{to} is on another filesystem than {path}: copy it with fs.read and fs.write",
            errno.EXDEV,
        ) from None
    finally:
        os.close(source)
    channel.finish("result")


def start_remove(channel: Channel, request: dict[str, object]) -> ChannelOperation | None:
    path, recursive = get_path(request), get_bool(request, "recursive")
    parent, name = open_parent(path)
    try:
        with naming(path):
            is_directory = stat.S_ISDIR(_lstat(parent, name).st_mode)
            if not is_directory:
                os.unlink(name, dir_fd=parent)
            elif not recursive:
                os.rmdir(name, dir_fd=parent)
    except BaseException:
        os.close(parent)
        raise
    if is_directory and recursive:
        return SteppedOperation(channel, remove_tree(parent, name, path), parent).start()
    os.close(parent)
    channel.finish("result", count=1)
    return None


def _entries(path: str, fd: int) -> Steps:
    """Batches in the directory's own order: sorting would need all of it in memory."""
    count = size = total = 0
    batch: list[dict[str, object]] = []
    with naming(path), os.scandir(fd) as found:
        for item in found:
            entry = _described(path, fd, item.name)
            if entry is None:
                continue
            batch.append(entry)
            count += 1
            size += _json_bound(entry)
            total += _text_size(entry)
            if total > MAX_LISTING:
                raise RequestError(f"{path}: its listing is over {MAX_LISTING} bytes", errno.EFBIG)
            if len(batch) >= MAX_ENTRIES or size >= MAX_BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch
    return {"count": count}


def _described(path: str, fd: int, name: str) -> dict[str, object] | None:
    """None for an entry that has gone since it was read."""
    try:
        status = _lstat(fd, name)
        target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(status.st_mode) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:  # readlink: it is no longer a link
            raise
        return None
    return describe(f"{path.rstrip('/')}/{name}", status, target)


def _json_bound(entry: dict[str, object]) -> int:
    """At most so many bytes of JSON: a character is ``\\u0001``, or two such beyond ASCII."""
    texts = [value for value in entry.values() if isinstance(value, str)]
    return 300 + sum(len(text) * (6 if text.isascii() else 12) for text in texts)


def _text_size(entry: dict[str, object]) -> int:
    """Its bytes as they are sent, about: names as UTF-8, and what is around them."""
    texts = [value for value in entry.values() if isinstance(value, str)]
    return 100 + sum(len(os.fsencode(text)) for text in texts)


def _lstat(dir_fd: int, name: str) -> os.stat_result:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _is_directory(dir_fd: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=dir_fd).st_mode)
    except OSError:
        return False


OPERATIONS = {
    "fs.stat": plain(start_stat),
    "fs.list": plain(start_list),
    "fs.mkdir": plain(start_mkdir),
    "fs.move": plain(start_move),
    "fs.remove": plain(start_remove),
}
