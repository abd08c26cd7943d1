"""Snapshots that principals have taken: files of the daemon's, found again after a restart."""

import os
import shutil

import msgspec

from agentd.linux.replacing import replacing
from agentd.model import typed
from agentd.model.api import SnapshotView
from agentd.model.errors import AgentdError, NotFound
from agentd.model.principal import Principal
from agentd.sandbox import snapshots
from agentd.sandbox.snapshots import Snapshot

_ABOUT = "about.json"


class SnapshotOwner(msgspec.Struct, frozen=True):
    sandbox: str
    principal: str
    created: float


class Snapshots:
    """Keeps each snapshot in a folder, and beside it who took it of which sandbox."""

    def __init__(self, folder: str) -> None:
        os.makedirs(folder, 0o700, exist_ok=True)
        self._folder = folder

    def place(self, id_: str) -> str:
        return os.path.join(self._folder, id_, "snapshot")

    def write_down(self, id_: str, about: SnapshotOwner) -> None:
        path = os.path.join(self._folder, id_, _ABOUT)
        with replacing(path, 0o600, alone=True, synced=True) as file:
            file.write(msgspec.json.encode(about))

    def get(self, who: Principal, id_: str) -> Snapshot:
        """Raises NotFound, also for another principal's."""
        about = self._about(id_)
        if about is None or not who.owns(about.principal):
            raise NotFound(
                f"there is no snapshot {id_[:64]!r}", remediation="agentd snapshot ls lists yours"
            )
        return snapshots.load(self.place(id_))

    def all(self, who: Principal) -> list[SnapshotView]:
        return [v for id_ in sorted(os.listdir(self._folder)) if (v := self.view(who, id_))]

    def view(self, who: Principal, id_: str) -> SnapshotView | None:
        about = self._about(id_)
        if about is None or not who.owns(about.principal):
            return None
        try:
            kept = snapshots.load(self.place(id_))
        except AgentdError:
            return None
        return SnapshotView(id_, about.sandbox, kept.fidelity, about.created, kept.size)

    def remove(self, who: Principal, id_: str) -> None:
        self.get(who, id_)
        self.discard(id_)

    def discard(self, id_: str) -> None:
        shutil.rmtree(os.path.join(self._folder, id_), ignore_errors=True)

    def sweep(self) -> None:
        """Remove the snapshots that a previous daemon did not finish."""
        for id_ in os.listdir(self._folder):
            if self._about(id_) is None:
                self.discard(id_)

    def _about(self, id_: str) -> SnapshotOwner | None:
        if not id_.startswith("snp-") or "/" in id_ or "\0" in id_:
            return None
        try:
            with open(os.path.join(self._folder, id_, _ABOUT), "rb") as file:
                return typed.decoder(SnapshotOwner).decode(file.read())
        except (OSError, msgspec.MsgspecError):
            return None
