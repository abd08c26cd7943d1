"""A caller's secrets; each that is set or removed stands in the audit log first, by its name."""

from functools import partial
from typing import TYPE_CHECKING

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.audit import Kind
from agentd.model.kept_secret import SecretView

if TYPE_CHECKING:
    from agentd.daemon.secrets import SecretStore


class DaemonSecrets(Noun):
    """Implements ``model.kept_secret.Secrets``."""

    @observed("set_secret")
    def set(self, name: str, value: str) -> SecretView:
        record = partial(self._parts.control.record, Kind.SECRET_SET, self._who.name, name=name)
        return self._store.set(self._who.name, name, value, record)

    @observed("secrets")
    def list(self) -> tuple[SecretView, ...]:
        return tuple(self._store.all(self._who.name))

    @observed("delete_secret")
    def delete(self, name: str) -> None:
        record = partial(self._parts.control.record, Kind.SECRET_REMOVED, self._who.name, name=name)
        self._store.remove(self._who.name, name, record)

    @property
    def _store(self) -> "SecretStore":
        """Raises Forbidden."""
        self._who.require("secrets")
        return self._parts.secrets
