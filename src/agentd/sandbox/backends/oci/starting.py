"""The host's end of the launcher: asks for sandboxes, and gets their first processes."""

import errno
import os
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

from agentd.guest.zygote.asked import number
from agentd.linux import privileges
from agentd.linux.cgroup import Group
from agentd.model.errors import SandboxError
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.child import Ended, misplaced, receive
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux.layers import LayerMaker
from agentd.sandbox.backends.oci.bundle import MOUNTS

_MODULE = "agentd.sandbox.backends.oci.launcher"
_MORE_FILES = "raise the limit of open files that agentd is started with (ulimit -n)"

# A runtime's words on what the caller has mounted.
_MISPLACED = re.compile(rf"{MOUNTS}/\d+\W.*(not a directory|cannot be mounted)", re.I | re.S)


class Contained(NamedTuple):
    """A sandbox whose first process runs, and whose agent was not heard yet."""

    launcher: "Launcher"
    pidfd: int
    disk: int  # of its scratch tmpfs
    listener: socket.socket
    block: Block | None
    group: Group | None
    detail: str  # why there is no group
    held: list[str]
    sockets: list[socket.socket]  # of a network that is restricted to rules
    namespaces: list[int]  # of mounts, in which its scratch tmpfs is; none where no fork may share


class HandedOver(NamedTuple):
    """What the launcher passes along; ``sockets`` counts those of the network among ``fds``."""

    held: list[str]
    fds: list[int]
    sockets: int


class Launcher(LayerMaker):
    """Thread-safe. Closing it ends every sandbox that it started: the kernel sees to that."""

    who = "launcher"
    unready = "no namespaces can be had for OCI runtimes"

    def __init__(self) -> None:
        #: Where its sandboxes' ids are from.
        self.ids = identity.configured()
        self._own = identity.take(self.ids) if privileges.may_mount() else None
        #: Whether each of its sandboxes has a user of its own.
        self.own_users = self._own is not None
        #: Whether mounts are made as the machine's root, by the host itself.
        self.may_mount = self.own_users
        try:
            super().__init__(_MODULE)
        except BaseException:
            if self._own is not None:
                self._own.release(ended=False)
            raise

    def nobodys(self) -> range:
        """Ids that no process ever has: those of a block of the launcher's own."""
        return range(0) if self._own is None else range(self._own.id, self._own.id + identity.SIZE)

    def start(self, request: dict[str, object], fds: Sequence[int]) -> None:
        """Ask for a sandbox: the builder answers at the second descriptor. Raises SandboxError."""
        with self._lock:
            self._wait_ready()
            self._send({"op": "start", **request}, fds)

    def clone_tree(self, path: str, source: int, *, readonly: bool) -> int:
        """A detached mount of ``path``, made with the caller's own rights; ``source`` is a
        descriptor of what is meant. Raises OSError where the kernel refuses it, SandboxError."""
        with self._lock:
            self._wait_ready()
            number = self._next_number()
            self._send({"op": "mount", "n": number, "path": path, "ro": readonly})
            answer, fds = self._receive(self._control, number)
        return self._mounted(answer, fds, path, source)

    def refused(self) -> str:
        """Take what it says of a request whose descriptors, the one to answer at among them, did
        not arrive; "" where it says nothing."""
        with self._lock:
            try:
                answer, fds = receive(self._control, 0, self.who)
            except SandboxError:
                return ""
        for fd in fds:
            os.close(fd)
        return str(answer.get("error", ""))

    def close(self) -> None:
        """End the launcher and with it every sandbox; idempotent."""
        ended = self._end()
        if self._own is not None and ended is not None:
            self._own.release(ended)


def await_started(
    answers: socket.socket, seconds: float, runtime: str, launcher: Launcher
) -> HandedOver:
    """What is in force by now, and what is passed along: a pidfd of the sandbox's first process,
    its disk, the sockets of its network, and the namespace of mounts that its disk is in; or its
    disk alone, before it is started.

    Raises SandboxError with the runtime's own words, InvalidInput where they are of a mount that
    finds something else where it goes, Ended where the launcher was killed.
    """
    who = f"builder of {runtime}"
    try:
        answer, fds = receive(answers, seconds, who)
    except Ended:
        try:  # a connection that was reset is told once, and before what was said over it
            answer, fds = receive(answers, 0, who)
        except SandboxError:
            if cause := launcher.refused():
                raise SandboxError(
                    "the sandbox could not be built", cause=cause, remediation=_MORE_FILES
                ) from None
            raise Ended("the sandbox could not be built", cause="its builder was killed") from None
    if "error" in answer:
        fix = _MORE_FILES if answer.get("errno") == errno.EMFILE else ""
        cause = str(answer["error"])
        # By its number where agentd made the place, in an image's root.
        if answer.get("errno") in (errno.ENOTDIR, errno.EISDIR) or _MISPLACED.search(cause):
            raise misplaced(cause)
        raise SandboxError(f"{runtime} could not build the sandbox", cause=cause, remediation=fix)
    held = answer.get("held")
    names = [str(name) for name in held] if isinstance(held, list) else []
    return HandedOver(names, fds, number(answer.get("sockets", 0)))
