"""The clones that the host wants ahead of the requests for them. Standard library only."""

import socket
from collections import deque
from typing import NamedTuple

from agentd.guest.zygote import box, image_root
from agentd.guest.zygote.maps import Maps
from agentd.guest.zygote.messages import receive
from agentd.linux.rights import close_all


class WantedClone(NamedTuple):
    """``id`` is whose it will be outside, ``lines`` are of its id maps, and at ``listener`` it will
    read what to prepare for, and its request."""

    number: int
    id: int | None
    lines: list[tuple[int, int, int]] | None
    listener: socket.socket

    def maps(self) -> Maps | None:
        return None if self.lines is None else Maps(*self.lines)


class Ahead:
    """In the order in which they were asked for. The host asks for a few of them at a time."""

    def __init__(self) -> None:
        self._wanted: deque[WantedClone] = deque()

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def add(self, request: dict[str, object], fds: list[int]) -> None:
        """One whose descriptor was lost on the way is not made: the host notices at its end."""
        if len(fds) != 1:
            close_all(fds)
            return
        number, id_ = request["next"], request["id"]
        self._wanted.append(
            WantedClone(
                number if isinstance(number, int) else 0,
                id_ if isinstance(id_, int) else None,
                _lines(request),
                socket.socket(fileno=fds[0]),
            )
        )

    def first(self) -> WantedClone:
        return self._wanted[0]

    def drop_first(self) -> None:
        self._wanted.popleft().listener.close()

    def close_others(self, listener: socket.socket) -> None:
        """In a clone: what is meant for the others is none of its business."""
        for wanted in self._wanted:
            if wanted.listener is not listener:
                wanted.listener.close()


def maps_of(request: dict[str, object]) -> Maps | None:
    """Returns the id maps of a clone that gets more ids than its own."""
    lines = _lines(request)
    return None if lines is None else Maps(*lines)


def prepare(listener: socket.socket, id_: int | None, *, mapped: bool) -> box.Prepared:
    """In a clone made ahead: go the first half of the way. Raises EOFError, OSError."""
    request, passed = receive(listener)
    request |= {"outside": id_, "mapped": mapped}
    prepared = box.Prepared(request, [listener.fileno(), *passed])
    close_all(passed)
    if request.get("image") is not None:
        image_root.import_nothing()
    return prepared


def _lines(request: dict[str, object]) -> list[tuple[int, int, int]] | None:
    lines = request.get("map")
    return [(a, b, n) for a, b, n in lines] if isinstance(lines, list) else None
