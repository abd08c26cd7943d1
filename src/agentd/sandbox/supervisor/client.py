"""The daemon's end of its supervisor: starts it, asks it, hears what ended."""

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from agentd.linux import paths, rights
from agentd.linux.python import LOADER
from agentd.model import context
from agentd.model.errors import BackendLost, SandboxError
from agentd.sandbox import guard
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.child import unsent
from agentd.sandbox.supervisor import wire

_START_SECONDS = 60.0  # of one that hangs, or of a busy machine
_AGAIN_SECONDS = 10.0  # likewise, for who tries again by itself: its daemon waits for that to end
_POLL_SECONDS = 0.02
# The longest of all is building an image and booting a template under software emulation.
ANSWER_SECONDS = 300.0
# A supervisor that stands still must not hold up those who ask, and all others behind them.
_SEND_SECONDS = 10
_SEND_TIMEOUT = struct.pack("ll", _SEND_SECONDS, 0)
OnEnded = Callable[[str, str], None]
#: What waits to be answered: the wall's ``id``, and members of ``egress.asked.AskedPlace``.
OnAsked = Callable[[wire.Message], None]


def _nobody(_: wire.Message) -> None:
    """Leaves it unanswered: who connects without an answer makes no sandboxes that ask."""


class SupervisorLink:
    """Thread-safe. ``on_ended(id, reason)`` is called in a thread of the link's own; ``reason`` is
    a word, and behind a colon what is known of why. So is ``on_asked``, which does not block."""

    def __init__(self, sock: socket.socket, on_ended: OnEnded, on_asked: OnAsked = _nobody) -> None:
        self._on_ended, self._on_asked = on_ended, on_asked
        self._lock = threading.Lock()
        self._waiting: dict[int, PendingAnswer] = {}
        self._count = 0
        self.lost = threading.Event()
        self._begin_reading(sock)

    def replace(self, sock: socket.socket) -> None:
        """Go on with another connection in place of this one. Owns ``sock``."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        with self._lock:
            self._sock.close()
            self.lost.clear()
            self._begin_reading(sock)

    def _begin_reading(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self._sock = sock
        self._reader = threading.Thread(
            target=self._read, args=(sock,), name="supervisor-link", daemon=True
        )
        try:
            self._reader.start()
        except RuntimeError as error:  # no thread is left
            self.lost.set()
            sock.close()
            raise SandboxError(
                "no thread can be started to read what the supervisor says", cause=str(error)
            ) from error

    def ask(self, op: str, seconds: float = ANSWER_SECONDS, **fields: object) -> Any:
        """Returns the answer's value. Raises the supervisor's error, BackendLost if it is gone."""
        return self.ask_fds(op, seconds, **fields)[0]

    def ask_fds(
        self, op: str, seconds: float = ANSWER_SECONDS, **fields: object
    ) -> tuple[Any, list[int]]:
        """Ask, and return the answer with its descriptors, the caller's to close."""
        return self.begin(op, **fields).result(seconds)

    def begin(self, op: str, **fields: object) -> "PendingAnswer":
        """Does as ``ask``, with something to do before its ``result``. Raises BackendLost."""
        with self._lock:
            self._count += 1
            number = self._count
            asked = self._waiting[number] = PendingAnswer(op, lambda: self._abandon(number))
            try:
                self._send({"n": number, "op": op, **_whose(), **fields})
            except BaseException:
                del self._waiting[number]
                raise
        return asked

    def tell(self, op: str, **fields: object) -> None:
        """Tells what needs no answer: once it is sent, the supervisor does it whether we live or
        not; and that a sandbox has ended it tells anyway. Raises BackendLost."""
        with self._lock:
            self._send({"op": op, **_whose(), **fields})

    def _send(self, message: wire.Message) -> None:
        """Under ``_lock``."""
        try:
            if self.lost.is_set():
                raise BrokenPipeError
            wire.send(self._sock, message)
        except BlockingIOError as error:
            raise SandboxError(f"the supervisor takes no request for {_SEND_SECONDS} s") from error
        except OSError as error:
            raise (
                unsent("supervisor", error) if error.errno in rights.NO_ROOM else _gone()
            ) from error

    def _abandon(self, number: int) -> bool:
        """Return whether the answer had not come."""
        with self._lock:
            return self._waiting.pop(number, None) is not None

    def close(self) -> None:
        """Closes it, idempotent; the supervisor and its sandboxes stay."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join(5.0)
        self._sock.close()

    def _read(self, sock: socket.socket) -> None:
        try:
            while True:
                self._take(*wire.receive(sock))
        except (EOFError, OSError, ValueError):
            pass
        finally:  # whatever ended it: no caller may wait for an answer any longer
            with self._lock:
                self.lost.set()
                waiting, self._waiting = list(self._waiting.values()), {}
            for asked in waiting:
                asked.give({"error": wire.encode_error(_gone())}, [])

    def _take(self, message: wire.Message, fds: list[int]) -> None:
        if "event" in message:
            rights.close_all(fds)
            try:
                if message["event"] == "asked":
                    self._on_asked(message)
                    return
                # A supervisor of before knows no more than the reason.
                why = str(message.get("why") or "")
                reason = str(message["reason"])
                self._on_ended(str(message["id"]), f"{reason}: {why}" if why else reason)
            except Exception as error:  # it must not keep the answers from those who wait
                guard.tell(error)
            return
        with self._lock:
            asked = self._waiting.pop(int(str(message["n"])), None)
        if asked is None:  # it came too late
            rights.close_all(fds)
        else:
            asked.give(message, fds)


class PendingAnswer:
    """A question that is under way."""

    def __init__(self, op: str, abandon: Callable[[], bool]) -> None:
        self._op = op
        self._abandon = abandon
        self._done = threading.Event()
        self._message: wire.Message = {}
        self._fds: list[int] = []

    def give(self, message: wire.Message, fds: list[int]) -> None:
        self._message, self._fds = message, fds
        self._done.set()

    @property
    def answered(self) -> bool:
        return self._done.is_set()

    def result(self, seconds: float = ANSWER_SECONDS) -> tuple[Any, list[int]]:
        """Return the answer as ``ask_fds`` does."""
        if not self._done.wait(seconds) and self._abandon():
            raise SandboxError(f"the supervisor did not answer {self._op} within {seconds:g} s")
        error = self._message.get("error")
        if isinstance(error, dict):
            rights.close_all(self._fds)
            raise wire.decode_error(error)
        return self._message.get("ok"), self._fds


def connect(path: str, on_ended: OnEnded, on_asked: OnAsked = _nobody) -> SupervisorLink:
    """Connect to the supervisor at ``path``, started if there is none. Raises SandboxError."""
    link = SupervisorLink(_connected(path, time.monotonic() + _START_SECONDS), on_ended, on_asked)
    try:
        _see_answer(link, path, _START_SECONDS)
    except BaseException:
        link.close()
        raise
    return link


def reconnect(link: SupervisorLink, path: str) -> None:
    """Connect a lost link again. Raises SandboxError; it is still lost then."""
    link.replace(_connected(path, time.monotonic() + _AGAIN_SECONDS))
    _see_answer(link, path, _AGAIN_SECONDS)


def _see_answer(link: SupervisorLink, path: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not _answers(link, seconds):
        # It was about to end when it took us: its socket is gone by now, or will be.
        if time.monotonic() >= deadline:
            raise SandboxError(f"the supervisor at {path} ends again and again")
        time.sleep(_POLL_SECONDS)
        link.lost.wait(seconds)
        link.replace(_connected(path, deadline))


def _connected(path: str, deadline: float) -> socket.socket:
    started = False
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if not started:
                _start(path)
                started = True
            elif time.monotonic() >= deadline:
                raise SandboxError(
                    f"the supervisor did not come up at {path}", cause=str(error)
                ) from error
            time.sleep(_POLL_SECONDS)
        else:
            return sock


def _answers(link: SupervisorLink, seconds: float) -> bool:
    try:
        # An older one does not know of ids, and takes no notice.
        link.ask("hello", seconds, ids=list(identity.configured()))
    except BackendLost:
        return False
    return True


_KEPT = (
    *("HOME", "PATH", "TMPDIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "LANG", "PYTHONPATH"),
    "SSL_CERT_FILE",
    *LOADER,
)


def _start(path: str) -> None:
    """Start it in a session of its own, with what finds its files alone of our environment.

    The process that is started forks and ends at once, so that we need not reap the supervisor.
    """
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    argv = [sys.executable, "-m", "agentd.sandbox.supervisor.main", path]
    with open(f"{path}.log", "ab", opener=paths.private) as log:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
        ]
        pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SandboxError("the supervisor could not be started", remediation=f"see {path}.log")


def _whose() -> wire.Message:
    """For whom it is asked: nobody fills the supervisor with theirs. An older one takes no
    notice."""
    principal = context.principal.get()
    return {"whose": principal} if principal else {}


def _gone() -> BackendLost:
    return BackendLost(
        "the supervisor has ended, and every sandbox with it", remediation="create new sandboxes"
    )
