"""Snapshots that principals have taken: files of the daemon's, found again after a restart."""

import contextlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator

import msgspec

from agentd.linux.replacing import replacing
from agentd.model import typed
from agentd.model.api import SnapshotView
from agentd.model.errors import AgentdError, NotFound, QuotaExceeded
from agentd.model.principal import Principal
from agentd.sandbox import snapshots
from agentd.sandbox.disk_left import check_left
from agentd.sandbox.snapshots import Snapshot

MAX_OF_ONE = 256  # snapshots of one principal
_ABOUT = "about.json"


class SnapshotOwner(msgspec.Struct, frozen=True):
    """``owner`` is whose the sandbox was, an older snapshot's ``principal``'s: an admin takes
    others', too."""

    sandbox: str
    principal: str
    created: float
    owner: str = ""


class Snapshots:
    """Keeps each snapshot in a folder, and beside it who took it of which sandbox. Thread-safe."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, 0o700, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._making: Counter[str] = Counter()

    @contextlib.contextmanager
    def making(self, principal: str) -> Iterator[str]:
        """Yield the id of one that is to be taken; what is there of it goes where the block fails,
        or leaves too little of the disk. Raises QuotaExceeded, Full."""
        id_ = f"snp-{os.urandom(8).hex()}"
        with self._room(principal):
            try:
                os.makedirs(self._folder, 0o700, exist_ok=True)  # somebody may have removed it
                check_left(self._folder, "snapshot")
                os.mkdir(os.path.join(self._folder, id_), 0o700)
                yield id_
                check_left(self._folder, "snapshot")
            except BaseException:
                self.discard(id_)
                raise

    @contextlib.contextmanager
    def _room(self, principal: str) -> Iterator[None]:
        with self._lock:
            self._making[principal] += 1
            making = self._making[principal]
        try:
            # One that is written down meanwhile may count twice, and none is left out.
            abouts = map(self._about, self._ids())
            kept = sum(about is not None and about.principal == principal for about in abouts)
            if kept + making > MAX_OF_ONE:
                raise QuotaExceeded(
                    f"{principal} has {MAX_OF_ONE} snapshots already",
                    remediation="remove some: agentd snapshot ls lists them",
                )
            yield
        finally:
            with self._lock:
                self._making[principal] -= 1

    def place(self, id_: str) -> str:
        return os.path.join(self._folder, id_, "snapshot")

    def write_down(self, id_: str, about: SnapshotOwner) -> None:
        path = os.path.join(self._folder, id_, _ABOUT)
        with replacing(path, 0o600, alone=True, synced=True) as file:
            file.write(msgspec.json.encode(about))

    def get(self, who: Principal, id_: str) -> Snapshot:
        """Load one. Raises NotFound, also for another principal's."""
        self.check(who, id_)
        return snapshots.load(self.place(id_))

    def owner(self, who: Principal, id_: str) -> str:
        """Return whose the secrets in it are. Raises NotFound."""
        about = self.check(who, id_)
        return about.owner or about.principal

    def check(self, who: Principal, id_: str) -> SnapshotOwner:
        """Check as ``get`` does, without reading it: it may be damaged."""
        about = self._about(id_)
        if about is None or not who.owns(about.principal):
            raise NotFound(
                f"there is no snapshot {id_[:64]!r}", remediation="agentd snapshot ls lists yours"
            )
        return about

    def all(self, who: Principal) -> list[SnapshotView]:
        return [v for id_ in self._ids() if (v := self.view(who, id_))]

    def view(self, who: Principal, id_: str) -> SnapshotView | None:
        about = self._about(id_)
        if about is None or not who.owns(about.principal):
            return None
        try:
            kept = snapshots.load(self.place(id_))
        except AgentdError:
            return None
        return SnapshotView(id_, about.sandbox, kept.fidelity, about.created, kept.size)

    def discard(self, id_: str) -> None:
        # Without that it is one that was not finished, should we die before the rest is gone.
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, id_, _ABOUT))
        shutil.rmtree(os.path.join(self._folder, id_), ignore_errors=True)

    def sweep(self) -> None:
        """Remove the snapshots that a previous daemon did not finish."""
        for id_ in self._ids():
            if self._about(id_) is None:
                self.discard(id_)

    def _ids(self) -> list[str]:
        try:
            return sorted(os.listdir(self._folder))
        except FileNotFoundError:  # somebody removed it: there are none
            return []

    def _about(self, id_: str) -> SnapshotOwner | None:
        if not id_.startswith("snp-") or "/" in id_ or "\0" in id_:
            return None
        try:
            with open(os.path.join(self._folder, id_, _ABOUT), "rb") as file:
                return typed.decoder(SnapshotOwner).decode(file.read())
        except (OSError, msgspec.MsgspecError):
            return None
