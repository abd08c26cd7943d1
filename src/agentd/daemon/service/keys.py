"""API keys, as callers see them; each that is made or revoked stands in the audit log first."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from agentd.daemon.observe.observed import observed
from agentd.daemon.service.noun import Noun
from agentd.model.api import KeyView
from agentd.model.audit import Kind
from agentd.model.typed import like
from agentd.model.units import parse_duration

if TYPE_CHECKING:
    from agentd.auth.keys import KeyRecord


class DaemonKeys(Noun):
    """Implements ``model.service.Keys``."""

    @observed("create_key")
    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        ttl: str | float | None = None,
        principal: str | None = None,
    ) -> KeyView:
        seconds = None if ttl is None else parse_duration(ttl, "ttl")
        made = self._parts.keys().create(
            self._who,
            name,
            tuple(scopes),
            ttl=seconds,
            principal=principal,
            record=self._record_new,
        )
        return _view(made.record, made.key)

    @observed("keys")
    def list(self) -> tuple[KeyView, ...]:
        return tuple(_view(record) for record in self._parts.keys().ls(self._who))

    @observed("key")
    def get(self, id: str) -> KeyView:
        return _view(self._parts.keys().get(self._who, id))

    @observed("revoke_key")
    def revoke(self, id: str) -> None:
        record = partial(self._parts.control.record, Kind.KEY_REVOKED, self._who.name, id=id)
        self._parts.keys().revoke(self._who, id, record)

    def _record_new(self, record: "KeyRecord") -> None:
        self._parts.control.record(
            Kind.KEY_CREATED,
            self._who.name,
            id=record.id,
            name=record.name,
            scopes=record.scopes,
            acts_as=record.principal,
        )


def _view(record: "KeyRecord", secret: str | None = None) -> KeyView:
    revoked, scopes = record.revoked is not None, tuple(record.scopes)
    return like(KeyView, record, scopes=scopes, revoked=revoked, secret=secret)
