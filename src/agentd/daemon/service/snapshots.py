"""A caller's snapshots."""

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.api import SnapshotView
from agentd.model.errors import NotFound


class DaemonSnapshots(Noun):
    """Implements ``model.service.Snapshots``."""

    @observed("snapshots")
    def list(self) -> tuple[SnapshotView, ...]:
        self._who.require("snapshot")
        return tuple(self._parts.snapshots.all(self._who))

    @observed("get_snapshot")
    def get(self, id: str) -> SnapshotView:
        self._who.require("snapshot")
        found = self._parts.snapshots.view(self._who, id)
        if found is None:
            raise NotFound(f"there is no snapshot {id[:64]!r}")
        return found

    @observed("delete_snapshot")
    def delete(self, id: str) -> None:
        self._who.require("snapshot")
        self._parts.snapshots.remove(self._who, id)
