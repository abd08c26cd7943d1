"""SHA-256 of files and of sets of them."""

import hashlib
from collections.abc import Mapping


def of_file(path: str) -> str:
    """Return the SHA-256 of a file, in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_parts(parts: Mapping[str, bytes | str]) -> str:
    """Return the SHA-256 of names and contents, in hex, whatever their order; no two different
    mappings look alike."""
    total = hashlib.sha256()
    for name in sorted(parts):
        content = parts[name]
        data = content.encode() if isinstance(content, str) else content
        total.update(f"{len(name)}:{name}:{len(data)}:".encode() + data)
    return total.hexdigest()
