"""A package's tree with /bin, /sbin and /lib below /usr, as it is installed on a merged system.

Debian's packages of before 2024 (Debian 12's) name /bin/bash and /lib/x86_64-linux-gnu/libc.so.6.
"""

import os

# As base-files has them; the guest has these links too.
_FOLDERS = ("bin", "lib", "lib64", "sbin")


def is_merged(tree: str) -> bool:
    return not any(map(_is_folder, (os.path.join(tree, name) for name in _FOLDERS)))


def merge(tree: str) -> None:
    """Merge a tree, in place; one that is merged stays as it is."""
    for name in _FOLDERS:
        source = os.path.join(tree, name)
        if _is_folder(source):
            _move(source, os.path.join(tree, "usr", name))


def _move(source: str, target: str) -> None:
    if not _is_folder(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.rename(source, target)
        return
    for name in os.listdir(source):
        _move(os.path.join(source, name), os.path.join(target, name))
    os.rmdir(source)


def _is_folder(path: str) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
