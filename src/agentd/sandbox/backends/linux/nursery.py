"""The host's end of one zygote: starts it, asks it for sandboxes, ends it."""

import contextlib
import errno
import socket
from collections.abc import Callable

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import privileges
from agentd.linux.fingerprint import fingerprint
from agentd.linux.waiting import is_ready
from agentd.model.configuration import USUAL, HostConfiguration
from agentd.model.errors import AgentdError, SandboxError
from agentd.sandbox.backends import configuration, identity
from agentd.sandbox.backends.child import Starved, receive, send, unsent
from agentd.sandbox.backends.identity import SIZE, Block
from agentd.sandbox.backends.linux.layers import LayerMaker
from agentd.sandbox.backends.linux.spares import AskedSpare, Spare, SpareKind, Spares
from agentd.sandbox.backends.linux.subid_range import SubidRange

_MODULE = "agentd.guest.zygote.main"
# Blocks of ids of which a few may lie idle.
_ROOMY = 64

Prepare = Callable[[socket.socket, Block | None], None]


class Nursery(LayerMaker):
    """A zygote. Thread-safe. Closing it ends every sandbox of it: the kernel sees to that."""

    who = "zygote"
    unready = "the sandbox root could not be built"

    def __init__(
        self,
        *,
        net: str,
        plain: dict[str, object] | None = None,
        shown: HostConfiguration = USUAL,
        subids: SubidRange | None = None,
    ) -> None:
        """Starts the process and returns at once; the first request waits for it.

        ``plain`` is what most requests ask for: the zygote rehearses those. With ``subids`` root of
        its sandboxes has these, too.
        """
        self.net = net
        #: Of the seccomp filters, once the zygote is ready: by whether a folder is mounted rw.
        self.filter_digests: dict[tuple[bool, bool], str] = {}
        self._spares = Spares()
        #: Directories of the host's /etc and /var/lib that its root has.
        self.configuration = configuration.trees(shown)
        self._hidden = shown.hide
        #: Where its sandboxes' ids are from.
        self.ids = identity.configured()
        self._own = identity.take(self.ids)
        #: Whether each of its sandboxes has a user of its own.
        self.own_users = self._own is not None
        #: Whether mounts are made as the machine's root, by the host itself.
        self.may_mount = self._own is not None and privileges.may_mount()
        #: Of an ordinary user, for root of its sandboxes alone.
        self.subids = subids
        with contextlib.ExitStack() as undo:
            if self._own is not None:
                undo.callback(self._own.release, ended=False)
            self._mounts, mounts = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._mounts.close)
            with mounts:
                super().__init__(_MODULE, mounts)
            undo.callback(self._control.close)
            self._send(self._config(net, plain))
            undo.pop_all()

    def nobodys(self) -> range:
        """Ids that the zygote's namespace has, and no process ever: the zygote is the first of its
        block. Root of a sandbox may become any id of its own block."""
        return range(0) if self._own is None else range(self._own.id + 1, self._own.id + SIZE)

    def take_spare(self, kind: SpareKind) -> Spare | None:
        """Takes the clone that waits for a request of this kind, if there is one. The caller owns
        all of it, and calls ``ask_next`` in time."""
        with self._lock:
            self._collect_spares()
            return self._spares.take(kind)

    def ask_next(self, kind: SpareKind, prepare: Prepare) -> None:
        """Have the zygote clone a spare of this kind, where it is asked for often and there is
        none, once nobody asks it for anything.

        ``prepare`` sends the clone what it is to do before its request, at the socket that it gets
        and of the block that it gets.
        """
        with contextlib.suppress(AgentdError, OSError):  # whoever needs it says so
            with self._lock:
                if not (self._may_spare(kind) and self._spares.wants(kind)):
                    return
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with contextlib.ExitStack() as undo:
                    undo.callback(ours.close)
                    undo.callback(theirs.close)
                    number, block = self._next_number(), identity.take(self.ids)
                    undo.pop_all()
                self._spares.expect(kind, AskedSpare(number, ours, block))
            with theirs:
                self._ask_next(kind, number, ours, theirs, block, prepare)

    def _ask_next(
        self,
        kind: SpareKind,
        number: int,
        ours: socket.socket,
        theirs: socket.socket,
        block: Block | None,
        prepare: Prepare,
    ) -> None:
        try:
            prepare(ours, block)  # not under the lock: it may ask for mounts
            request: dict[str, object] = {"next": number, "id": None if block is None else block.id}
            if kind.uid == 0:
                request |= self._map(block)
            with self._lock:
                self._send(request, [theirs.fileno()])
        except BaseException:
            with self._lock:
                self._spares.give_up(kind)
            raise

    def _may_spare(self, kind: SpareKind) -> bool:
        """Where there are few blocks, sandboxes get them."""
        return kind.image is None or not self.own_users or self.ids.blocks >= _ROOMY

    def _map(self, block: Block | None) -> dict[str, object]:
        """The id maps of root's sandboxes, where they are more than one id."""
        if block is not None:
            return {"map": [[0, block.id, SIZE]]}
        if self.subids is not None:
            return {"map": [[0, 0, 1], [1, 1, self.subids.many]]}
        return {}

    def spawn(
        self,
        listener: socket.socket,
        scratch: dict[str, object] | None,
        block: Block | None,
        *,
        whole: bool = False,
        writable: bool = False,
    ) -> "Pending":
        """Ask for a clone that reads its request from ``listener``; with ``scratch`` (``disk`` and
        ``inodes``) it gets a tmpfs that the host sees, too, with ``whole`` all of the block's ids,
        and a ``writable`` root. ``Pending.answer`` must be called."""
        self._lock.acquire()
        try:
            self._wait_ready()
            number = self._next_number()
            id_ = None if block is None else block.id
            request: dict[str, object] = {"n": number, "id": id_, "cow": scratch is not None}
            request |= scratch or {}
            if writable:
                request["writable"] = True
            if whole:
                request |= self._map(block)
            self._send(request, [listener.fileno()])
        except BaseException:
            self._lock.release()
            raise
        return Pending(self, number)

    def clone_tree(self, path: str, source: int, *, readonly: bool) -> int:
        """Makes a detached mount of ``path``, made with the caller's own rights.

        Raises OSError where the kernel refuses it, SandboxError.

        The zygote is in a mount namespace of its own, where only a path leads to the folder:
        ``source`` is a descriptor of what is meant, and any other file is refused.
        """
        with self._lock:
            self._wait_ready()
            number = self._next_number()
            request: dict[str, object] = {"n": number, "path": path, "ro": readonly}
            send(self._mounts, request, [], "zygote", MAX_MESSAGE)
            answer, fds = self._receive(self._mounts, number)
        return self._mounted(answer, fds, path, source)

    def alive(self) -> bool:
        # A killed zygote closes its socket before it can be reaped (do_exit, kernel/exit.c).
        return not is_ready(self._control, events=0) and super().alive()

    def close(self) -> None:
        """End the zygote and with it every sandbox; idempotent."""
        self._mounts.close()
        blocks = self._spares.close()
        ended = self._end()  # the kernel ends every clone with it
        if ended is None:
            return
        if self._own is not None:
            blocks.append(self._own)
        for block in blocks:
            block.release(ended)

    def _collect_spares(self) -> None:
        """Take the clones that the zygote may have sent since."""
        while self._ready and is_ready(self._control):
            try:
                answer, fds = receive(self._control, 0, "zygote")
            except Starved:  # one that we could not take, and nobody knows which
                self._spares.give_up_coming()
                return
            self._sort(answer, fds)

    def _sort(self, answer: dict[str, object], fds: list[int]) -> None:
        number = answer.get("spare")
        if isinstance(number, int) and len(fds) == 1:
            self._spares.arrived(number, fds[0])
        else:  # a sandbox that has nobody at the other end, and ends
            super()._sort(answer, fds)

    def _config(self, net: str, plain: dict[str, object] | None) -> dict[str, object]:
        ids = None
        if self._own is not None:
            ids = {"own": self._own.id, "start": self.ids.start, "end": self.ids.end}
        return {
            "ids": ids,
            "subids": None if self.subids is None else self.subids._asdict(),
            "may_mount": self.may_mount,
            "net": net,
            "plain": plain,
            "configuration": self.configuration,
            "hidden": self._hidden,
        }

    def _is_ready(self, answer: dict[str, object]) -> None:
        self.filter_digests = {
            (rw, root): fingerprint(bytes.fromhex(str(answer[name])))
            for rw, root, name in (
                (False, False, "filter"),
                (True, False, "filter_rw"),
                (False, True, "filter_root"),
                (True, True, "filter_root_rw"),
            )
        }

    def _answer(self, number: int) -> list[int]:
        try:
            answer, fds = self._receive(self._control, number)
        finally:
            self._lock.release()
        if "error" in answer:
            code, text = answer.get("errno"), str(answer["error"])
            if code == errno.ETOOMANYREFS:
                raise unsent("host", OSError(code, text))
            raise SandboxError("the kernel refused the sandbox", cause=text)
        return fds


_begun: Nursery | None = None


def begin(net: str) -> None:
    """Start a zygote that the process's first backend will adopt, and the relay where its sandboxes
    need one; returns at once."""
    global _begun  # noqa: PLW0603  (handed over before any backend exists)
    if _begun is None:
        with contextlib.suppress(AgentdError, OSError):  # said again by whoever needs it
            _begun = Nursery(net=net)
            if net == "restricted":
                from agentd.sandbox.backends.linux import network

                network.relay().begin()


def adopt() -> Nursery | None:
    """Takes over, once, the zygote that ``begin`` started."""
    global _begun
    nursery, _begun = _begun, None
    return nursery


class Pending:
    """A request on its way; holds the nursery's lock until it is answered."""

    def __init__(self, nursery: Nursery, number: int) -> None:
        self._nursery = nursery
        self._number = number

    def answer(self) -> list[int]:
        """Returns the pidfd, and a copy-on-write sandbox's scratch mount. Raises SandboxError."""
        return self._nursery._answer(self._number)
