"""The guest agent as one file: a zipapp that comes out the same, byte for byte, wherever built.

It holds the two rooms that need nothing but the standard library, and runs on any Python from 3.11.
"""

import hashlib
import io
import os
import zipfile

from agentd.linux.replacing import replacing

SHEBANG = b"#!/usr/bin/env python3\n"
_MAIN = b"import sys\n\nfrom agentd.guest.main import main\n\nsys.exit(main())\n"
# Files of the package itself, and the rooms taken whole.
_FILES = ("__init__.py", "_version.py")
_ROOMS = ("guest", "linux")
# The earliest time that a zip entry can carry.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX = 3


def build(out_path: str) -> str:
    """Write the zipapp, mode 0755, replacing a file that was there whole, behind links; returns its
    SHA-256 in hex.

    Raises OSError.
    """
    content = pack(sources())
    with replacing(os.path.realpath(out_path), 0o755) as file:
        file.write(content)
    return hashlib.sha256(content).hexdigest()


def sources() -> dict[str, bytes]:
    """Maps name in the archive -> content. Raises FileNotFoundError without a source tree."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = {"__main__.py": _MAIN}
    for name in _FILES:
        found[f"agentd/{name}"] = _read(os.path.join(package, name))
    for room in _ROOMS:
        for folder, _, names in os.walk(os.path.join(package, room)):
            for name in names:
                if name.endswith(".py"):
                    path = os.path.join(folder, name)
                    found[f"agentd/{os.path.relpath(path, package)}"] = _read(path)
    return found


def pack(files: dict[str, bytes]) -> bytes:
    """Packs a zipapp of the files, sorted, and stored: deflate's output differs by zlib version."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system = _UNIX
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
