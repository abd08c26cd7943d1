"""A caller's named volumes; each that is made or deleted stands in the audit log first."""

from functools import partial
from typing import TYPE_CHECKING

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.api import VolumeView
from agentd.model.audit import Kind
from agentd.sandbox.volume import view

if TYPE_CHECKING:
    from agentd.sandbox.volumes import VolumeStore


class DaemonVolumes(Noun):
    """Implements ``model.service.Volumes``."""

    @observed("create_volume")
    def create(self, name: str, size: str | int | None = None) -> VolumeView:
        record = partial(self._parts.control.record, Kind.VOLUME_CREATED, self._who.name, name=name)
        return view(self._store.create(self._who.name, name, size, record))

    @observed("volumes")
    def list(self) -> tuple[VolumeView, ...]:
        return tuple(view(volume) for volume in self._store.all(self._who.name))

    @observed("volume")
    def get(self, name: str) -> VolumeView:
        return view(self._store.get(self._who.name, name))

    @observed("snapshot_volume")
    def snapshot(self, name: str, new: str) -> VolumeView:
        record = partial(
            self._parts.control.record, Kind.VOLUME_CREATED, self._who.name, name=new, of=name
        )
        return view(self._store.snapshot(self._who.name, name, new, self._lives, record))

    @observed("delete_volume")
    def delete(self, name: str) -> None:
        record = partial(self._parts.control.record, Kind.VOLUME_DELETED, self._who.name, name=name)
        self._store.remove(self._who.name, name, self._lives, record)

    def _lives(self, sandbox: str) -> bool:
        live = self._parts.sandboxes.find(sandbox)
        return live is not None and not live.ending

    @property
    def _store(self) -> "VolumeStore":
        """Raises Forbidden."""
        self._who.require("volumes")
        return self._parts.volumes
