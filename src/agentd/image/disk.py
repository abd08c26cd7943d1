"""Disk images of a tree, made without root or loop devices: both tools read a tar archive.

mke2fs does so since 1.47.1, and where it was built so. What an older one makes is empty, and is
filled by debugfs(8), of the same package.
"""

import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator

from agentd.image.tree import ImageTree, TreeEntry
from agentd.linux import programs

_SECONDS = 300
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
# Fixed, as is the time, so that the same tree gives the same image.
_UUID = "6167656e-7464-4000-8000-000000000001"
_TIMES = {"SOURCE_DATE_EPOCH": "0", "E2FSPROGS_FAKE_TIME": "1"}
_ABSENT = "absent"
_MEGABYTE = 1 << 20
_ROOM = 32 * _MEGABYTE  # free space for a guest that writes to its ext4 root


def ext4(tree: ImageTree, path: str) -> str:
    """Write the image; returns why not, or "" when it is there."""
    archive = tar(tree)
    # Blocks are rounded up, a file each; inode tables and the like come on top.
    entries = sum(1 for _ in tree.items())
    size = (len(archive) + entries * 4096) * 21 // 20 + _ROOM
    size += -size % _MEGABYTE
    with open(path, "wb") as file:
        file.truncate(size)
    empty = [
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"),
        *("-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0"),
        *("-L", "agentd"),
    ]
    full = [*empty, "-d", f"{path}.tar", path]
    if not (reason := _make(full, "e2fsprogs", archive, path, _TIMES)):
        return ""
    if why := _filled([*empty, path], size, tree, path):
        return _without(path, reason if why == _ABSENT else f"{reason}; {why}")
    return ""


def _filled(empty: list[str], size: int, tree: ImageTree, path: str) -> str:
    """Write the image by debugfs; returns why not, or ""."""
    if shutil.which(empty[0], path=_PATH) is None or shutil.which("debugfs", path=_PATH) is None:
        return _ABSENT
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix="files-") as folder:
        script = os.path.join(folder, "script")
        with open(script, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.writelines(f"{line}\n" for line in _commands(tree, folder))
        with open(path, "wb") as image:
            image.truncate(size)
        for argv in (empty, ["debugfs", "-w", "-f", script, path]):
            try:
                said = _run(argv, _TIMES)
            except TimeoutError:
                return f"{argv[0]} took more than {_SECONDS} s"
            # debugfs goes on after an error, and ends with 0; its first line is its version.
            wrong = [line for line in said.err.splitlines() if not line.startswith("debugfs 1")]
            if said.code or wrong:
                return f"{argv[0]} failed: {' '.join(wrong)[:300]}"
    return ""


def _commands(tree: ImageTree, folder: str) -> Iterator[str]:
    """debugfs's, in the tree's order, so that the same tree gives the same image. It takes the
    mode of a new file from its source, and everything is root's."""
    for number, (path, entry) in enumerate(tree.items()):
        parent, name = os.path.split(path)
        yield f"cd {_quoted(parent)}"
        kind = entry.mode & 0o170000
        if kind == 0o040000:
            yield f"mkdir {_quoted(name)}"
        elif kind == 0o120000:
            yield f"symlink {_quoted(name)} {_quoted(os.fsdecode(entry.data))}"
        elif kind == 0o020000:
            yield f"mknod {_quoted(name)} c {entry.device[0]} {entry.device[1]}"
        else:
            source = os.path.join(folder, str(number))
            with open(source, "wb") as file:
                file.write(entry.data)
            yield f"write {_quoted(source)} {_quoted(name)}"
        if kind != 0o120000:
            yield f"sif {_quoted(name)} mode 0{entry.mode:o}"
        owner = [("uid", entry.uid), ("gid", entry.gid)]
        times = [(field, "@1") for field in ("atime", "ctime", "mtime", "crtime")]
        for field, value in owner + times:
            if value:
                yield f"sif {_quoted(name)} {field} {value}"


def _quoted(word: str) -> str:
    """As its parser has it (libss): a quote within quotes is doubled."""
    return '"' + word.replace('"', '""') + '"'


def erofs(tree: ImageTree, path: str) -> str:
    """Write the image; returns why not, or "" when it is there."""
    if not takes_tar():
        return f"no {os.path.basename(path)}: mkfs.erofs takes no tar archive here: it is too old"
    argv = ["mkfs.erofs", "--quiet", "-T0", f"-U{_UUID}", "--tar=f", path, f"{path}.tar"]
    return _make(argv, "erofs-utils", tar(tree), path, {})


def takes_tar() -> bool:
    """Return whether it does: not an mkfs.erofs without the option, as Debian 12's."""
    if shutil.which("mkfs.erofs", path=_PATH) is None:
        return True  # and _make says what is missing
    said = _run(["mkfs.erofs", "--help"], {})
    text = said.out + said.err
    return "--tar" in text or "sage:" not in text


def tar(tree: ImageTree) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, entry in tree.items():
            archive.addfile(*_member(path, entry))
    return buffer.getvalue()


def _member(path: str, entry: TreeEntry) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(f".{path}")
    kinds = {0o040000: tarfile.DIRTYPE, 0o120000: tarfile.SYMTYPE, 0o020000: tarfile.CHRTYPE}
    info.type = kinds.get(entry.mode & 0o170000, tarfile.REGTYPE)
    info.mode, info.uid, info.gid = entry.mode & 0o7777, entry.uid, entry.gid
    info.devmajor, info.devminor = entry.device
    data = b""
    if info.type == tarfile.SYMTYPE:
        info.linkname = os.fsdecode(entry.data)
    elif info.type == tarfile.REGTYPE:
        data = entry.data
        info.size = len(data)
    return info, io.BytesIO(data)


def _make(argv: list[str], package: str, archive: bytes, path: str, extra: dict[str, str]) -> str:
    name = os.path.basename(path)
    if shutil.which(argv[0], path=_PATH) is None:
        return _without(path, f"no {name}: {argv[0]} is not installed (apt-get install {package})")
    source = f"{path}.tar"
    try:
        with open(source, "wb") as file:
            file.write(archive)
        said = _run(argv, extra)
    except TimeoutError:
        return _without(path, f"no {name}: {argv[0]} took more than {_SECONDS} s")
    finally:
        os.unlink(source)
    if said.code != 0:
        return _without(path, f"no {name}: {argv[0]} failed: {said.err.strip()[-300:]}")
    return ""


def _run(argv: list[str], extra: dict[str, str]) -> programs.Said:
    return programs.ask(argv, _SECONDS, env={"PATH": _PATH, "LC_ALL": "C", **extra})


def _without(path: str, reason: str) -> str:
    if os.path.exists(path):
        os.unlink(path)
    return reason
