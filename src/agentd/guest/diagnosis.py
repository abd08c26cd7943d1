"""Why a program that seems to be there could not be started: what execve(2) has one word for.

"No such file or directory" is said of a script whose interpreter is missing, of a link that leads
nowhere, and of a program whose loader is. Standard library only.
"""

import errno
import os
import stat
import struct

from agentd.guest.lookup import places

_HEAD = 4096
_LINKS = 40  # as many as the kernel follows
_SHEBANG = b"#!"
_ELF = b"\x7fELF"
_ELF_HEADER = 64
_PT_INTERP = 3
_MACHINES = {"x86_64": b"\x3e\0", "aarch64": b"\xb7\0"}  # as they are told of in a header


def of_program(name: bytes, path: bytes, folder: bytes, code: int) -> str:
    """Say more of a failed start of ``name``, which is looked for in ``path``; "" for nothing.

    ``folder`` is the working directory, and ``code`` what the kernel said.
    """
    if code not in (errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENOTDIR, errno.ENOEXEC):
        return ""
    for program, _ in places(os.path.join(folder, name) if b"/" in name else name, path).found:
        try:
            mode = os.lstat(program).st_mode
        except (OSError, ValueError):
            continue
        if code == errno.ENOEXEC:
            return _of_format(program)
        return _of_file(program, mode) if code != errno.EACCES else _denied(program)
    return ""


def _of_file(program: bytes, mode: int) -> str:
    if stat.S_ISLNK(mode) and (gone := _leads_nowhere(program)):
        return f"it is a link to {gone}"
    try:
        needed, what = _needs(program)
    except (OSError, ValueError, struct.error):
        return ""
    if not needed or os.path.exists(needed):
        return ""
    if needed.endswith(b"\r"):
        return "its first line ends in a carriage return, as files of Windows do"
    gone = _leads_nowhere(needed)
    told = f"{_text(needed)} is a link to {gone}" if gone else f"{_text(needed)} {_GONE}"
    return f"its {what} {told}"


def _of_format(program: bytes) -> str:
    try:
        head = _head(program)
        if head.startswith(_ELF):
            own = _MACHINES.get(os.uname().machine, head[18:20])
            other = head[4:6] != b"\2\1" or head[18:20] != own  # 64 bits, the low ones first
            whole = len(head) > _ELF_HEADER
            return f"it is {'for another kind of machine' if other and whole else 'damaged'}"
    except OSError:
        return ""
    if not head:
        return "it is empty"
    if head.startswith(_SHEBANG):
        return "its first line names no interpreter"
    return "it is no program, and its first line names no interpreter"


_GONE = "does not exist in the sandbox"


def _leads_nowhere(link: bytes) -> str:
    """Say where a chain of links breaks off; "" where it is none, or whole."""
    for _ in range(_LINKS):
        try:
            target = os.readlink(link)
        except OSError:
            return ""
        link = os.path.join(os.path.dirname(link), target)
        if not os.path.lexists(link):
            return f"{_text(os.path.normpath(link))}, which {_GONE}"
    return "itself"


def _needs(program: bytes) -> tuple[bytes, str]:
    """The path of what runs a program, and what that is called. Raises OSError, struct.error."""
    head = _head(program)
    if head.startswith(_SHEBANG):
        line = head.split(b"\n", 1)[0][len(_SHEBANG) :].strip(b" \t")
        return line.split(b" ")[0].split(b"\t")[0], "interpreter"
    if head.startswith(_ELF) and len(head) > _ELF_HEADER:
        return _loader(head), "loader"
    return b"", ""


def _head(program: bytes) -> bytes:
    """What a file begins with; b"" of what is none. Raises OSError."""
    fd = os.open(program, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        return file.read(_HEAD) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _loader(head: bytes) -> bytes:
    """The path in PT_INTERP (elf(5)) of a program; b"" for none. Raises struct.error."""
    wide = head[4] == 2
    order = "<" if head[5] == 1 else ">"
    table = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    for number in range(min(count, 64)):
        start = table + number * size
        if struct.unpack_from(order + "I", head, start)[0] == _PT_INTERP:
            kind = order + ("Q" if wide else "I")
            offset = struct.unpack_from(kind, head, start + (8 if wide else 4))[0]
            return head[offset:].split(b"\0", 1)[0]
    return b""


def _denied(program: bytes) -> str:
    try:
        mode = os.stat(program).st_mode
    except OSError:
        return ""
    if stat.S_ISDIR(mode):
        return "it is a directory"
    if stat.S_ISREG(mode) and not mode & 0o111:
        return "it is not executable: chmod +x makes it so"
    return ""


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")
