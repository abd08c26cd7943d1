"""Disk images of a tree, made without root or loop devices: both tools read a tar archive."""

import io
import os
import shutil
import subprocess
import tarfile

from agentd.image.tree import Entry, Tree

_SECONDS = 300
_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
# Fixed, as is the time, so that the same tree gives the same image.
_UUID = "6167656e-7464-4000-8000-000000000001"
_MEGABYTE = 1 << 20
_ROOM = 32 * _MEGABYTE  # free space for a guest that writes to its ext4 root


def ext4(tree: Tree, path: str) -> str:
    """Write the image; returns why not, or "" when it is there."""
    archive = tar(tree)
    # Blocks are rounded up, a file each; inode tables and the like come on top.
    entries = sum(1 for _ in tree.items())
    size = (len(archive) + entries * 4096) * 21 // 20 + _ROOM
    size += -size % _MEGABYTE
    with open(path, "wb") as file:
        file.truncate(size)
    argv = [
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal"),
        *("-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0"),
        *("-L", "agentd", "-d", f"{path}.tar", path),
    ]
    return _make(
        argv, "e2fsprogs", archive, path, {"SOURCE_DATE_EPOCH": "0", "E2FSPROGS_FAKE_TIME": "1"}
    )


def erofs(tree: Tree, path: str) -> str:
    """Write the image; returns why not, or "" when it is there."""
    argv = ["mkfs.erofs", "--quiet", "-T0", f"-U{_UUID}", "--tar=f", path, f"{path}.tar"]
    return _make(argv, "erofs-utils", tar(tree), path, {})


def tar(tree: Tree) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, entry in tree.items():
            archive.addfile(*_member(path, entry))
    return buffer.getvalue()


def _member(path: str, entry: Entry) -> tuple[tarfile.TarInfo, io.BytesIO]:
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
        done = subprocess.run(
            argv,
            env={"PATH": _PATH, "LC_ALL": "C", **extra},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _without(path, f"no {name}: {argv[0]} took more than {_SECONDS} s")
    finally:
        os.unlink(source)
    if done.returncode != 0:
        return _without(path, f"no {name}: {argv[0]} failed: {done.stderr.strip()[-300:]}")
    return ""


def _without(path: str, reason: str) -> str:
    if os.path.exists(path):
        os.unlink(path)
    return reason
