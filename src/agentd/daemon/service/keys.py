"""API keys, as callers see them; each that is made or revoked stands in the audit log."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agentd.model.api import KeyBody, KeyView
from agentd.model.audit import Kind
from agentd.model.units import parse_duration

if TYPE_CHECKING:
    from agentd.auth.keys import KeyRecord, KeyService
    from agentd.daemon.admission.control import AdmissionControl
    from agentd.model.principal import Principal


class Keys:
    """The part of the service that is about keys. Thread-safe."""

    _keys: "Callable[[], KeyService]"
    _control: "AdmissionControl"

    def create_key(self, who: "Principal", body: KeyBody) -> KeyView:
        ttl = None if body.ttl is None else parse_duration(body.ttl, "ttl")
        made = self._keys().create(who, body.name, body.scopes, ttl=ttl, principal=body.principal)
        record = made.record
        self._control.note(
            Kind.KEY_CREATED,
            who.name,
            id=record.id,
            name=record.name,
            scopes=record.scopes,
            acts_as=record.principal,
        )
        return _key_view(made.record, made.key)

    def key(self, who: "Principal", key: str) -> KeyView:
        return _key_view(self._keys().get(who, key))

    def keys(self, who: "Principal") -> Sequence[KeyView]:
        return [_key_view(record) for record in self._keys().ls(who)]

    def revoke_key(self, who: "Principal", key: str) -> None:
        self._keys().revoke(who, key)
        self._control.note(Kind.KEY_REVOKED, who.name, id=key)


def _key_view(record: "KeyRecord", secret: str | None = None) -> KeyView:
    return KeyView(
        id=record.id,
        name=record.name,
        scopes=tuple(record.scopes),
        created=record.created,
        expires=record.expires,
        revoked=record.revoked is not None,
        secret=secret,
        principal=record.principal,
        created_by=record.created_by,
        parent=record.parent,
        last_used=record.last_used,
    )
