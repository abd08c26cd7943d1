"""Puts the layer to come on a sandbox's disk, and lends what was there to its forks (``stack``).

A child of the zygote, or of the launcher of containers, does it: that has every capability in the
namespaces of its sandboxes, and may enter theirs for as long as it takes. Standard library only.
"""

import os
import socket

from agentd.guest.zygote.asked import Request, number
from agentd.guest.zygote.messages import refuse, send
from agentd.guest.zygote.stack import NEXT, OVER, PLACES
from agentd.linux import abi
from agentd.linux.kernel import KERNEL
from agentd.linux.rights import close_all

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CLONE = abi.OPEN_TREE_CLONE | abi.OPEN_TREE_CLOEXEC
# What is forked once is forked again: so many mounts come at once, and cost one process.
_LENT_AT_ONCE = 4


def answer(control: socket.socket, request: Request, fds: list[int], place: str) -> None:
    """Have a child do what is asked for and answer it; close ``fds``. Never raises.

    ``place`` is a directory, at which a namespace of mounts of its own holds a layer.
    """
    try:
        if os.fork() == 0:
            _answer(control, request, fds, place)
    except (OSError, MemoryError) as error:
        refuse(control, request.get("n"), error)
    finally:
        close_all(fds)


def _answer(control: socket.socket, request: Request, fds: list[int], place: str) -> None:
    asked = request.get("n")
    try:
        freezes = request["layer"] == "freeze"
        given = _put_on_top(request, fds, place) if freezes else _lend(*fds)
        send(control, {"n": asked, "ok": True}, given)
    except BaseException as error:
        refuse(control, asked, error)
    finally:
        os._exit(0)


def _put_on_top(request: Request, fds: list[int], place: str) -> list[int]:
    """Let nobody write what is on a disk any more, and show the layer to come at the places.

    ``fds``: the disk, the namespace of mounts in which it is, and a pidfd of who is in another.
    Returns a namespace that holds what was frozen, a descriptor of that in it, and detached
    mounts. Raises OSError, EBUSY where a file is open to be written, and all is as it was.
    """
    disk, namespace, *others = fds
    top = os.open(NEXT, _FOLDER, dir_fd=disk)
    over = os.open(OVER, _FOLDER, dir_fd=top)
    home = KERNEL.open_mount_namespace()
    there = os.listdir(disk)
    covered: list[str] = []
    KERNEL.reconfigure(disk, ["ro"])
    try:
        KERNEL.reconfigure(top, size=number(request["size"]), nr_inodes=number(request["inodes"]))
        KERNEL.setns(namespace, abi.CLONE_NEWNS)
        layer = KERNEL.open_tree(disk, "", _CLONE | abi.AT_EMPTY_PATH)
        trees: list[tuple[str, int]] = []
        for name, path in PLACES.items():
            if name in there:
                # What the overlay knows of it is of before anything ran: this has it look anew.
                os.chmod(name, os.stat(name, dir_fd=disk).st_mode & 0o7777, dir_fd=over)
                trees.append((path, KERNEL.open_tree(over, name, _CLONE)))
        for shown in others:
            KERNEL.setns(shown, abi.CLONE_NEWNS)
        for path, tree in trees:
            KERNEL.move_mount(tree, "", abi.AT_FDCWD, path, abi.MOVE_MOUNT_F_EMPTY_PATH)
            covered.append(path)
        KERNEL.setns(home, abi.CLONE_NEWNS)
        held = _hold(layer, place)
        return [*held, *_lend(*held)]
    except BaseException:
        for shown in others or [namespace]:
            KERNEL.setns(shown, abi.CLONE_NEWNS)
        for path in covered:
            KERNEL.umount(path, abi.MNT_DETACH)
        KERNEL.reconfigure(disk, ["rw"])
        raise


def _hold(layer: int, place: str) -> tuple[int, int]:
    """A mount namespace in which a detached mount is, for as long as either is open: mounts are
    cloned from where they are mounted alone."""
    KERNEL.unshare(abi.CLONE_NEWNS)
    KERNEL.move_mount(layer, "", abi.AT_FDCWD, place, abi.MOVE_MOUNT_F_EMPTY_PATH)
    return KERNEL.open_mount_namespace(), os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _lend(namespace: int, tree: int) -> list[int]:
    """Detached mounts of what ``_hold`` holds. Raises OSError."""
    KERNEL.setns(namespace, abi.CLONE_NEWNS)
    flags = _CLONE | abi.AT_EMPTY_PATH
    return [KERNEL.open_tree(tree, "", flags) for _ in range(_LENT_AT_ONCE)]
