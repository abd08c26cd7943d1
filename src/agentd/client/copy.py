"""Files and folders into a sandbox and out of it. What comes out is hostile.

Where a copy lands is one rule, both ways: into a TARGET that ends with a slash (or is ``.``), or
that is a folder, under the source's own name; else it is TARGET. A link counts as what it leads to
only with the slash. To replace is to put a folder in the place of TARGET itself, whatever that is.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple

from agentd.client.stage import Stage, check_replaceable, exists
from agentd.guest.pack import Packer
from agentd.guest.tar import MAX_BYTES, TarError
from agentd.guest.unpack import Unpacker, write_holes
from agentd.model.errors import InvalidInput, OperationFailed, SandboxError
from agentd.model.units import counted

if TYPE_CHECKING:
    from agentd.client.files import Files

_PIECE = 256 << 10
_ENDS = ("", ".", "..")


class Copied(NamedTuple):
    bytes: int
    skipped: str = ""  # what was left out, in words


def upload(
    files: "Files", host_path: str | os.PathLike[str], path: str, *, replace: bool = False
) -> Copied:
    """Copy into ``files``, a sandbox's. Raises InvalidInput, OperationFailed, OSError."""
    source = os.fspath(host_path)
    check_source(source)
    name = _name_of(os.path.abspath(source), source)
    is_folder = os.path.isdir(source)
    found = _kind_inside(files, path)
    target = _landing(path, name, found == "dir", is_folder, replace)
    if target != path:
        found = _kind_inside(files, target)
    _check_target(target, found, is_folder, replace)
    if is_folder:
        above = os.path.dirname(target)
        if _kind_inside(files, above) is None:
            files.mkdir(above, parents=True)
        return _send_tree(files, source, target, replace)
    info = os.stat(source)
    if not stat.S_ISREG(info.st_mode):
        raise InvalidInput(
            f"{source} is no file", remediation="copy files and folders; a stream by -"
        )
    try:
        file = open(source, "rb")  # noqa: SIM115
    except OSError as error:
        raise _unreadable(source, error) from None
    with file:
        pieces = _read(iter(lambda: file.read(_PIECE), b""), source)
        return Copied(files.write(target, pieces, mode=info.st_mode & 0o777, parents=True))


def check_source(path: str) -> None:
    if not os.path.exists(path):
        raise InvalidInput(f"{path!r} does not exist", remediation="correct the path")


def upload_stream(files: "Files", stream: IO[bytes], path: str, *, replace: bool = False) -> Copied:
    """Write a stream until its end, as the file ``path``."""
    if path.endswith("/"):
        raise InvalidInput("a stream has no name", remediation="name the file that it becomes")
    found = _kind_inside(files, path)
    if found == "dir":
        raise InvalidInput(f"{path} is a folder", remediation="name the file that it becomes")
    _check_target(path, found, False, replace)
    return Copied(files.write(path, iter(lambda: stream.read(_PIECE), b""), parents=True))


def download(
    files: "Files", path: str, host_path: str | os.PathLike[str], *, replace: bool = False
) -> Copied:
    """Write nothing outside of the target, and nothing at all where it is not whole."""
    entry = files.stat(path)
    if entry.type not in ("file", "dir"):
        raise InvalidInput(
            f"{path} is a {_kind(entry.type)}, not a file or folder",
            remediation=f"copy what it stands for; of a link to a folder: {path}/",
        )
    asked = os.fspath(host_path)
    name = os.path.basename(path.rstrip("/"))
    if name in (".", ".."):
        raise InvalidInput(f"{path} has no name of its own", remediation="name it without dots")
    is_folder = entry.type == "dir"
    target = _landing(asked, name, _kind_here(asked) == "dir", is_folder, replace)
    found = _kind_here(target)
    _check_target(target, found, is_folder, replace)
    if replace:
        check_replaceable(target)
    if entry.size > MAX_BYTES:
        raise _too_large(path)
    with Stage(target) as stage:
        if is_folder:
            copied = _receive_tree(files._read_tar(path), stage, path)
        else:
            copied = _receive_file(files.read_iter(path), stage, path, entry.mode)
        stage.place(replace=replace)
    return copied


def download_stream(files: "Files", path: str, stream: IO[bytes]) -> Copied:
    """Return a file's bytes."""
    entry = files.stat(path)
    if entry.type != "file":
        raise InvalidInput(
            f"{path} is a {_kind(entry.type)}, not a file", remediation="name a folder for it"
        )
    total = 0
    for piece in files.read_iter(path):
        total += len(piece)
        with _writing(path):
            stream.write(piece)
    with _writing(path):
        stream.flush()
    return Copied(total)


# --- where it lands ---


def _landing(target: str, name: str, exists_as_folder: bool, is_folder: bool, replace: bool) -> str:
    if not target:
        raise InvalidInput("the target has no name", remediation="name it; here is .")
    last = target.rpartition("/")[2]
    into = last in _ENDS or (exists_as_folder and not (replace and is_folder))
    if into and last not in _ENDS and is_folder and last == name:
        raise InvalidInput(
            f"{target} exists already",
            remediation=f"replace it: -f, in the SDK replace=True; or write {target}/ to copy "
            "into it",
        )
    if into and not name:
        raise InvalidInput("the root has no name", remediation="name the folder that it becomes")
    if last == ".":
        target = target[:-1]
    return os.path.join(target, name) if into else target


def _check_target(target: str, found: str | None, is_folder: bool, replace: bool) -> None:
    if found is None:
        return
    if not replace:
        raise exists(target)
    if found == "dir" and not is_folder:
        raise InvalidInput(
            f"{target} is a folder, which no file replaces",
            remediation="remove it, or name another",
        )


def _name_of(path: str, asked: str) -> str:
    name = os.path.basename(path)
    if asked.rpartition("/")[2] in (".", ".."):
        name = os.path.basename(os.path.realpath(path))
    return name


def _kind_inside(files: "Files", path: str) -> str | None:
    """Tell its kind; None where nothing is there."""
    try:
        found: str = files.stat(path.rstrip("/") or "/").type
    except OperationFailed as error:
        if error.errno in (0, errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    return found


def _kind(word: str) -> str:
    """Name a kind as people do."""
    return {"dir": "directory", "link": "symbolic link", "char": "device", "block": "device"}.get(
        word, word
    )


def _kind_here(path: str) -> str | None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise InvalidInput(f"{path}: a file is on the way", remediation="correct it") from None
    except (OSError, ValueError) as error:  # ValueError of a path with a NUL
        raise InvalidInput(
            f"{path!r} cannot be written to",
            cause=getattr(error, "strerror", None) or str(error),
            remediation="name a path that there can be, in a folder that you may enter",
        ) from None
    return "dir" if stat.S_ISDIR(mode) else "file"


# --- how it gets there ---


def _send_tree(files: "Files", source: str, target: str, replace: bool) -> Copied:
    # A link to a folder that the caller names is followed; none in it is.
    real = os.path.realpath(source)
    parent = os.open(os.path.dirname(real) or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    name = os.fsencode(os.path.basename(real) or ".")
    packer = Packer(parent, name, os.fsencode(os.path.basename(target)))
    try:
        with closing(packer.run()) as pieces:
            read = filter(None, _read(pieces, source))
            files._write_tar(target, read, replace=replace)
    except TarError as error:
        raise InvalidInput(
            f"{source} cannot be copied: {error}", remediation="copy the rest by itself"
        ) from None
    finally:
        os.close(parent)
    more = f"{counted(packer.skipped, 'socket')}, as {os.fsdecode(packer.first_skipped)}"
    return Copied(packer.bytes, more if packer.skipped else "")


def _receive_tree(pieces: Iterable[bytes], stage: Stage, path: str) -> Copied:
    unpacker = Unpacker(stage.fd, stage.name, strict=True)
    try:
        for piece in pieces:
            with _writing(path):
                unpacker.write(piece)
        with _writing(path):
            for _ in unpacker.finish():
                pass
    except TarError as error:
        raise SandboxError(
            f"the sandbox's {path} may not come out: {error}",
            remediation="remove that there, or copy the rest by itself",
        ) from None
    finally:
        unpacker.close()
    return Copied(unpacker.bytes, unpacker.skipped)


def _receive_file(pieces: Iterator[bytes], stage: Stage, path: str, mode: int) -> Copied:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(stage.name, flags, 0o600, dir_fd=stage.fd)
    total = 0
    with open(fd, "wb", buffering=0):
        for piece in pieces:
            total += len(piece)
            if total > MAX_BYTES:
                raise _too_large(path)
            with _writing(path):
                write_holes(fd, piece)
        with _writing(path):
            os.ftruncate(fd, total)
            os.fchmod(fd, (mode & 0o755) | 0o600)
    return Copied(total)


def _too_large(path: str) -> SandboxError:
    return SandboxError(f"{path} is over {MAX_BYTES >> 30} GiB", remediation="copy it in parts")


def _read(pieces: Iterable[bytes], source: str) -> Iterator[bytes]:
    """Tell an error of the source apart from one of the connection that they go to."""
    try:
        yield from pieces
    except OSError as error:
        raise _unreadable(source, error) from None


def _unreadable(source: str, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"{source} cannot be read",
        cause=error.strerror or str(error),
        remediation="copy what you may read",
    )


@contextmanager
def _writing(path: str) -> Iterator[None]:
    """An error of what is written to is told apart from one of the connection it comes from."""
    try:
        yield
    except BrokenPipeError:
        raise  # nobody reads any more, which is no error of ours
    except OSError as error:
        raise _unwritable(path, error) from None


def _unwritable(path: str, error: OSError) -> OperationFailed:
    return OperationFailed(
        f"{path} could not be written here",
        cause=error.strerror or str(error),
        errno=error.errno or 0,
        remediation="make room, or choose another folder",
    )
