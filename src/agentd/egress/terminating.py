"""The host's end of the terminator: starts it with the first sandbox whose connections are read,
tells it of each, and starts the next where one died.

The keeper of the relay owns it, and its lock is the keeper's.
"""

import contextlib
import importlib.util
import io
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from agentd.egress import cassettes
from agentd.egress.authority import Authority
from agentd.egress.deaths import DeathCount
from agentd.egress.owed import OwedAnswers
from agentd.egress.process import RelayProcess, TakeUser, pack
from agentd.egress.terminator.recording import MAX_OF_ONE, MAX_TOGETHER
from agentd.model.egress import RECORD
from agentd.model.errors import Refused, SandboxError

MODULE = "agentd.egress.terminator.main"
_LIBRARIES = (
    "OpenSSL",
    "cryptography",
    "cffi",
    "_cffi_backend",
    "h11",
    "msgspec",
    "typing_extensions",
)
_START_SECONDS = 60.0
_SYNC_SECONDS = 10.0
_LOOK_SECONDS = 5.0
_HANG_SECONDS = 60.0
#: Where systems have the certificates that they trust, in one file.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)


class Reading(msgspec.Struct, frozen=True):
    """What a sandbox whose connections are read needs beside its table: its authority, and its
    secrets as they are told to the terminator. ``ca_file`` has certificates that are trusted beside
    the system's; that of the first sandbox holds for all, until there is another terminator."""

    authority: Authority
    secrets: tuple[Any, ...] = ()
    ca_file: str = ""

    def __repr__(self) -> str:
        return "Reading(...)"


class Terminating:
    """Keeps the terminator. All but ``roots`` is called with the lock of ``changed`` held."""

    def __init__(
        self,
        changed: threading.Condition,
        take: TakeUser | None,
        link: Callable[[socket.socket], None],
        rows: Callable[[dict[str, Any]], None],
    ) -> None:
        """``link`` gives the relay of now, if there is one, the way to a new terminator; ``rows``
        takes what one tells. Both are called with the lock."""
        self._changed, self._take, self._link, self._rows = changed, take, link, rows
        self._process: RelayProcess | None = None
        self._thread: threading.Thread | None = None
        self._ready = False
        self._failure = ""
        self._closed = False
        self._deaths = DeathCount()
        self._owed = OwedAnswers(changed, self._send)
        self._read: dict[int, tuple[Reading, Mapping[str, Any]]] = {}
        self._recordings: dict[int, io.FileIO] = {}
        self._replayed: dict[int, io.FileIO] = {}
        self._owners: dict[int, str] = {}  # whose cassettes these are, as far as it was said
        #: Certificates that hosts may have beside those that the system trusts.
        self.ca_file = ""
        #: What holds of it, in its own words; empty before it is ready.
        self.confinement: tuple[str, ...] = ()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def admit(self, id_: int, reading: Reading, table: Mapping[str, Any]) -> None:
        """Wait until it knows the sandbox. Raises SandboxError where there is no terminator."""
        self.ca_file = reading.ca_file or self.ca_file
        self._begin()
        self._await_ready()
        self._read[id_] = reading, table
        if table.get("cassette") == RECORD:
            self._recordings[id_] = cassettes.blank()
        try:
            self._tell_all(id_)
            self.sync(id_)
        except SandboxError:  # it died just now, and the next is told all
            self._await_ready()

    def set(self, id_: int, table: Mapping[str, Any]) -> None:
        """Judge requests by ``table`` from when this returns."""
        if id_ not in self._read:
            return
        self._read[id_] = self._read[id_][0], table
        with contextlib.suppress(SandboxError):
            self._send({"set": id_, "table": table})
            self.sync(id_)

    def give(self, id_: int, secrets: Sequence[Any]) -> None:
        """Have these secrets put into its requests from now on: those of ``pack_secrets``. Raises
        Refused where nothing of the sandbox is read."""
        if id_ not in self._read:
            raise Refused(
                "this wall has no connections of its sandboxes read, where secrets could be put",
                remediation="use the backend linux, oci, gvisor, qemu or firecracker",
            )
        reading, table = self._read[id_]
        self._read[id_] = msgspec.structs.replace(reading, secrets=tuple(secrets)), table
        with contextlib.suppress(SandboxError):  # the next is told
            self._tell(id_)
            self.sync(id_)

    def ask_what_goes_on(self, id_: int) -> None:
        """Let it tell, before the next ``sync``, what it has asked that is not recorded yet."""
        if id_ not in self._recordings:
            raise Refused(
                "the sandbox records nothing", remediation="make one whose net begins with record"
            )
        with contextlib.suppress(SandboxError):  # nothing goes on without it
            self._send({"going_on": id_})

    def recording(self, id_: int) -> io.FileIO:
        """Return a copy, the caller's, of the file of what it asked. Raises SandboxError."""
        try:
            return io.FileIO(os.dup(self._recordings[id_].fileno()))
        except (KeyError, OSError) as error:
            raise SandboxError("the cassette cannot be read now", cause=str(error)) from error

    def count_for(self, id_: int, owner: str) -> None:
        """Count what it records, and is played from now on, among what this owner may take."""
        self._owners[id_] = owner
        with contextlib.suppress(SandboxError):  # the next is told
            self._tell_owner(id_)

    def play(self, id_: int, cassette: bytes) -> None:
        """Answer its requests, which are replayed, from this one from now on, from its beginning.
        Raises Refused where those of its owner, or of all, would be too large."""
        taken = Counter({self._owners.get(id_, ""): len(cassette)})
        for other, each in self._replayed.items():
            if other != id_:
                taken[self._owners.get(other, "")] += os.fstat(each.fileno()).st_size
        if (owner := self._owners.get(id_, "")) and taken[owner] > MAX_OF_ONE:
            raise Refused(
                f"the cassettes of the sandboxes of {owner} would take over {MAX_OF_ONE} bytes",
                remediation="end sandboxes of yours that replay",
            )
        if taken.total() > MAX_TOGETHER:
            raise Refused(
                f"the cassettes of all sandboxes would take over {MAX_TOGETHER} bytes",
                remediation="end sandboxes that replay, or wait until some have ended",
            )
        file, before = cassettes.holding(cassette), self._replayed.get(id_)
        self._replayed[id_] = file
        if before is not None:
            before.close()
        with contextlib.suppress(SandboxError):  # the next is told
            self._tell_replayed(id_)
            self.sync(id_)

    def release(self, id_: int) -> None:
        for files in (self._recordings, self._replayed):
            if (file := files.pop(id_, None)) is not None:
                file.close()
        self._owners.pop(id_, None)
        self._deaths.forget(id_)
        if self._read.pop(id_, None) is not None:
            with contextlib.suppress(SandboxError):
                self._send({"release": id_})

    def sync(self, id_: int) -> None:
        """Wait until it has told what the sandbox has done until now, if it reads anything of that,
        or is gone; not for long."""
        if self._ready and id_ in self._read:
            process = self._process
            self._owed.wait(_SYNC_SECONDS, lambda: self._process is not process or not self._ready)

    def relay_changed(self) -> None:
        """Give both a way to the other: there is another relay."""
        if self._ready:
            with contextlib.suppress(SandboxError):
                self._connect()

    def shut(self) -> None:
        """End it; the next ``admit`` starts another."""
        process, self._process = self._process, None
        self._ready = False
        if process is not None:
            process.shut()

    def close(self) -> None:
        self._closed = True
        for id_ in list(self._read):
            self.release(id_)
        self.shut()

    def join(self) -> None:
        """Wait until the one that was shut has ended; without the lock."""
        if self._thread is not None:
            self._thread.join()

    def forget_after_fork(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.abandon()
        for file in (*self._recordings.values(), *self._replayed.values()):
            file.close()
        self._recordings, self._replayed, self._owners = {}, {}, {}
        self._read, self._closed, self._ready, self._thread = {}, True, False, None

    # --- under the lock ---

    def _begin(self) -> None:
        if self._closed:
            raise SandboxError("the network relay was closed")
        if self._process is None:
            self._failure = ""
            self._start()

    def _start(self) -> None:
        first = {"roots": roots(self.ca_file)}
        self._process = process = RelayProcess(self._take, MODULE, _folders(), first)
        self._ready = False
        self._thread = threading.Thread(
            target=self._keep, args=(process,), name="agentd-terminator", daemon=True
        )
        self._thread.start()

    def _await_ready(self) -> None:
        self._changed.wait_for(lambda: self._ready or self._failure, _START_SECONDS)
        if not self._ready:
            raise SandboxError(
                "the network's connections cannot be read",
                cause=self._failure or f"what reads them was not ready within {_START_SECONDS:g} s",
                remediation="try again: a busy machine may need longer; its log says more",
            )

    def _tell(self, id_: int) -> None:
        reading, table = self._read[id_]
        own = reading.authority
        message = {"admit": id_, "key": own.key, "certificate": own.certificate}
        self._send({**message, "secrets": reading.secrets})
        self._send({"set": id_, "table": table})

    def _tell_all(self, id_: int) -> None:
        """``_tell`` of one that it does not know yet."""
        self._tell(id_)
        if (file := self._recordings.get(id_)) is not None:
            self._send({"cassette": id_, "begun": cassettes.begun(file)}, [file])
            self._tell_owner(id_)
        if id_ in self._replayed:
            self._tell_replayed(id_)

    def _tell_owner(self, id_: int) -> None:
        if id_ in self._recordings and id_ in self._owners:
            self._send({"count_for": (id_, self._owners[id_])})

    def _tell_replayed(self, id_: int) -> None:
        file = self._replayed[id_]
        file.seek(0)
        self._send({"cassette": id_}, [file])

    def _connect(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            self._send({"relay": True}, [ours])
            self._link(theirs)

    def _send(
        self, message: Mapping[str, Any], sockets: "Sequence[socket.socket | io.FileIO]" = ()
    ) -> None:
        if self._process is None:
            raise SandboxError("what reads connections is gone")
        self._process.send(pack(message), sockets)

    # --- the thread ---

    def _keep(self, process: RelayProcess) -> None:
        """Take what one tells until it is gone, and start the next where it is still needed."""
        hear, look = partial(self._hear, process), partial(self._look, process)
        wrong = process.listen(hear, look, _LOOK_SECONDS)
        culprit = process.worked_for()
        process.close()
        with self._changed:
            if wrong:
                self._rows({"rows": [{"fault": wrong}], "lost": 0})
            if self._process is process:
                if not (self._ready or self._read):
                    self._failure = self._failure or "it ended before it was ready"
                self._process, self._ready = None, False
                self._again(culprit)
            self._changed.notify_all()

    def _again(self, culprit: int) -> None:
        """Start the next, where the last died as it did something for ``culprit``, or nobody."""
        if self._closed or not self._read or self._failure:
            return
        known = culprit in self._read
        why = self._deaths.add(culprit if known else 0)
        if why and known:
            self.release(culprit)
            row: dict[str, object] = {"name": "", "address": "", "port": None, "rule": ""}
            row |= {"sandbox": culprit, "allowed": False, "ended": True}
            row["reason"] = f"its requests are not read any more: {why}"
            self._rows({"rows": [row], "lost": 0})
        elif why:
            self._failure = why
        while self._read and not self._failure:
            try:
                self._start()
                return
            except SandboxError as error:  # it died before it was told who it is, or there is none
                if why := self._deaths.add():
                    self._failure = f"{why}, at last as it began: {error}"

    def _look(self, process: RelayProcess) -> None:
        with self._changed:
            if not self._ready or self._process is not process:
                return
            self._owed.look(_HANG_SECONDS, process.kill)

    def _hear(self, process: RelayProcess, message: dict[str, Any]) -> None:
        with self._changed:
            if self._process is not process:
                return
            if "rows" in message:
                self._rows(message)
            elif "synced" in message:
                self._owed.answered(message["synced"])
            elif "error" in message:
                self._failure = str(message["error"])
            else:
                self.confinement = tuple(message["ready"])
                for id_ in self._read:
                    self._tell_all(id_)
                self._connect()
                self._owed.begin()
                self._ready = True
            self._changed.notify_all()


def roots(ca_file: str = "") -> list[str]:
    """List the files of the certificates that the host trusts."""
    said = os.environ.get("SSL_CERT_FILE", "")
    usual = ssl.get_default_verify_paths().cafile or ""
    found = next((path for path in (said, usual, *BUNDLES) if path and os.path.exists(path)), "")
    if not found:
        import certifi

        found = certifi.where()
    return [found, *([ca_file] if ca_file else [])]


def _folders() -> list[str]:
    """Where the libraries are that a terminator imports: one folder mostly."""
    found: dict[str, None] = {}
    for name in _LIBRARIES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            place = os.path.dirname(spec.origin)
            found[os.path.dirname(place) if spec.submodule_search_locations else place] = None
    return list(found)
