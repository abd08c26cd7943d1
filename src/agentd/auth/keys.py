"""API keys: ``agd_ID_SECRET``, of which only a hash of the secret is kept."""

import hmac
import re
import time
from base64 import b32encode
from collections.abc import Callable, Iterable
from hashlib import sha256
from os import urandom
from typing import Protocol

import msgspec

from agentd.model.credential import Credential
from agentd.model.errors import (
    Forbidden,
    Full,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    Unauthenticated,
)
from agentd.model.principal import ADMIN, SCOPES, Principal
from agentd.model.units import format_duration

PREFIX = "agd_"
_ANOTHER = "create another: agentd key create"
# Ended ones too: of these the one that ended first goes for a new key.
MAX_KEYS = 10_000
MAX_KEYS_OF_ONE = 200  # principal, so that none fills the store
MAX_DEPTH = 8  # keys made with keys made with keys
# A store that wrote on every request would be the slowest part of it.
TOUCH_SECONDS = 60.0
_KEY = re.compile(r"agd_([a-z2-7]{12})_([a-z2-7]{52})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PRINCIPAL = re.compile(r"[A-Za-z0-9][!-~]{0,255}")
_NO_HASH = bytes(32)


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the store keeps it. Times are seconds since the epoch."""

    id: str
    name: str
    principal: str  # as whom it acts
    digest: bytes  # SHA-256 of the whole key; 32 bytes
    scopes: tuple[str, ...]
    created: float
    created_by: str
    parent: str | None = None  # the key that it was made with; it falls with that one
    expires: float | None = None
    revoked: float | None = None
    last_used: float | None = None


class KeyStore(Protocol):
    """Durable when ``add``, ``revoke`` and ``remove`` return. Thread-safe."""

    def add(self, record: KeyRecord) -> None: ...
    def get(self, key_id: str) -> KeyRecord | None: ...
    def list(self) -> Iterable[KeyRecord]: ...
    def revoke(self, key_id: str, when: float) -> None:
        """Sets ``revoked`` where it is None."""

    def remove(self, key_id: str) -> None:
        """Forgets one that has ended."""

    def touch(self, key_id: str, when: float) -> None:
        """Sets ``last_used``; may be lost."""


class NewKey(msgspec.Struct, frozen=True):
    """``key`` is shown this once and kept nowhere."""

    key: str
    record: KeyRecord

    def __repr__(self) -> str:
        return f"NewKey({self.record.id})"


class KeyProvider:
    def __init__(self, store: KeyStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    def authenticate(self, credential: Credential) -> Principal | None:
        key = credential.api_key
        if key is None:
            key = credential.bearer
            if key is None or not key.startswith(PREFIX):
                return None
        record = self._verified(key)
        now = self._clock()
        _check_line(self._store, record, now)
        if record.last_used is None or now - record.last_used >= TOUCH_SECONDS:
            self._store.touch(record.id, now)
        # What a later version granted means nothing here.
        scopes = frozenset(record.scopes) & frozenset(SCOPES)
        return Principal(record.principal, scopes, "key", record.id)

    def _verified(self, key: str) -> KeyRecord:
        match = _KEY.fullmatch(key)
        record = self._store.get(match[1]) if match else None
        # Compared even where there is nothing to compare with, and always in the same time.
        same = hmac.compare_digest(digest(key), record.digest if record else _NO_HASH)
        if record is None or not same:
            raise Unauthenticated(
                "the API key is not valid", remediation="check it, or ask for another"
            )
        return record


class KeyService:
    """Makes, lists and revokes keys for a principal that asks."""

    def __init__(
        self,
        store: KeyStore,
        *,
        default_ttl: float | None = None,
        max_ttl: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._default_ttl = default_ttl
        self._max_ttl = max_ttl
        self._clock = clock

    def create(
        self,
        asker: Principal,
        name: str,
        scopes: Iterable[str],
        *,
        ttl: float | None = None,
        principal: str | None = None,
        record: Callable[[KeyRecord], object] = lambda _: None,
    ) -> NewKey:
        """Make a key named ``name`` that acts as ``principal``: an admin's choice, by default
        ``name``.

        Anybody else's key acts as themselves, with no scope that they lack. A key that is made
        with a key ends no later than that one. ``record`` writes down that there will be one; what
        it raises leaves it unmade. Raises Forbidden, InvalidInput, QuotaExceeded, Full.
        """
        asker.require("keys")
        granted = _granted(asker, scopes)
        acts_as = _acts_as(asker, _checked_name(name), principal)
        now = self._clock()
        gone = self._room(acts_as, now)
        parent = self._parent(asker, now)
        key_id = _random_text(8)[:12]
        key = f"{PREFIX}{key_id}_{_random_text(32)}"
        made = KeyRecord(
            id=key_id,
            name=name,
            principal=acts_as,
            digest=digest(key),
            scopes=granted,
            created=now,
            created_by=asker.name,
            parent=parent.id if parent else None,
            expires=self._expiry(now, ttl, parent),
        )
        record(made)
        if gone is not None:
            self._store.remove(gone)
        self._store.add(made)
        return NewKey(key, made)

    def get(self, asker: Principal, key_id: str) -> KeyRecord:
        """Return it without its hash. Raises NotFound for a key that the asker does not have."""
        asker.require("keys")
        record = self._store.get(key_id)
        if record is None or not asker.owns(record.principal):
            raise NotFound(
                f"there is no key {key_id[:64]!r}", remediation="agentd key ls has their ids"
            )
        return msgspec.structs.replace(record, digest=b"")

    def ls(self, asker: Principal) -> list[KeyRecord]:
        """Return the asker's own, or everybody's for an admin; without their hashes, oldest
        first."""
        asker.require("keys")
        found = [r for r in self._store.list() if asker.owns(r.principal)]
        return [
            msgspec.structs.replace(r, digest=b"")
            for r in sorted(found, key=lambda r: (r.created, r.id))
        ]

    def revoke(
        self, asker: Principal, key_id: str, record: Callable[[], object] = lambda: None
    ) -> list[str]:
        """Revoke it for good, with every key that was made with it; return their ids. ``record``
        writes that down first.

        Raises NotFound for a key that the asker does not have.
        """
        self.get(asker, key_id)
        now = self._clock()
        family = _family(key_id, self._store.list())
        record()
        for member in family:
            self._store.revoke(member, now)
        return family

    def _room(self, principal: str, now: float) -> str | None:
        """Return the ended key that one more takes the place of; None where there is room.

        Nobody is refused for keys that they had. Raises QuotaExceeded, Full.
        """
        every = list(self._store.list())
        own = [record for record in every if record.principal == principal]
        is_own = len(own) >= MAX_KEYS_OF_ONE
        if not is_own and len(every) < MAX_KEYS:
            return None
        gone = _first_ended(own if is_own else every, now)
        if gone is not None:
            return gone
        if is_own:
            raise QuotaExceeded(
                f"{principal} has {len(own)} keys already",
                remediation="use one of them, or revoke some: agentd key ls",
            )
        raise Full(f"there are {len(every)} keys already", remediation="revoke some")

    def _parent(self, asker: Principal, now: float) -> KeyRecord | None:
        if asker.via != "key":
            return None
        record = self._store.get(asker.credential)
        if record is None:
            raise Unauthenticated(f"key {asker.credential} is gone", remediation=_ANOTHER)
        if len(_check_line(self._store, record, now)) >= MAX_DEPTH:
            raise Forbidden(
                f"key {record.id} is too far from the first", remediation="use an older key"
            )
        return record

    def _expiry(self, now: float, ttl: float | None, parent: KeyRecord | None) -> float | None:
        if ttl is not None and not ttl > 0:
            raise InvalidInput(f"a key cannot live {ttl} s", remediation="give it a --ttl above 0")
        if ttl is not None and self._max_ttl is not None and ttl > self._max_ttl:
            raise InvalidInput(
                f"a key lives at most {format_duration(self._max_ttl)} here",
                remediation="give a shorter --ttl, or raise auth.keys.max_ttl",
            )
        chosen = ttl if ttl is not None else self._default_ttl or self._max_ttl
        if chosen is not None and self._max_ttl is not None:
            chosen = min(chosen, self._max_ttl)
        ends = [now + chosen] if chosen is not None else []
        if parent is not None and parent.expires is not None:
            ends.append(parent.expires)
        return min(ends, default=None)


def _first_ended(records: Iterable[KeyRecord], now: float) -> str | None:
    ended = [
        (moment, record.id)
        for record in records
        for moment in (record.revoked, record.expires)
        if moment is not None and moment <= now
    ]
    return min(ended)[1] if ended else None


def digest(key: str) -> bytes:
    """256 random bits need no slow hash: there is nothing to guess."""
    return sha256(key.encode(errors="surrogatepass")).digest()


def _check_line(store: KeyStore, record: KeyRecord, now: float) -> list[KeyRecord]:
    """Return the key and those that it was made with. Raises Unauthenticated where one has ended.

    Each is looked at: a key may be made in the very moment in which its parent is revoked.
    """
    line = [record]
    while True:
        key = line[-1]
        if key.revoked is not None or (key.expires is not None and now >= key.expires):
            end = "was revoked" if key.revoked is not None else "has expired"
            whose = "" if key is record else f", and key {record.id} with it"
            raise Unauthenticated(f"key {key.id} {end}{whose}", remediation=_ANOTHER)
        if key.parent is None:
            return line
        parent = store.get(key.parent)
        if parent is None or len(line) > MAX_DEPTH:
            gone = f"the key that key {key.id} was made with is gone"
            raise Unauthenticated(gone, remediation=_ANOTHER)
        line.append(parent)


def _granted(asker: Principal, scopes: Iterable[str]) -> tuple[str, ...]:
    wanted = frozenset(scopes)
    unknown = wanted - frozenset(SCOPES)
    if unknown or not wanted:
        raise InvalidInput(
            f"unknown scope {sorted(unknown)[0]!r}" if unknown else "a key needs a scope",
            remediation=f"use some of: {', '.join(SCOPES)}",
        )
    lacking = sorted(scope for scope in wanted if not asker.may(scope))
    if lacking:
        raise Forbidden(
            f"{asker.name} cannot grant {', '.join(lacking)}",
            cause="nobody grants what they lack",
            remediation="leave it out, or have an admin create the key",
        )
    return tuple(sorted(wanted))


def _acts_as(asker: Principal, name: str, principal: str | None) -> str:
    if asker.may(ADMIN):
        if principal is not None and not _PRINCIPAL.fullmatch(principal):
            raise InvalidInput(
                f"{principal!r} is no name for a principal",
                remediation="use at most 256 printable characters without spaces",
            )
        return principal or name
    if principal not in (None, asker.name):
        raise Forbidden(
            f"{asker.name} cannot create a key for {principal}",
            remediation="have an admin create it",
        )
    return asker.name


def _checked_name(name: str) -> str:
    # No colon: that is in the names that uids and tokens give, so that none can be taken.
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is no name for a key",
            remediation="use at most 64 letters, digits, dots, dashes and underscores",
        )
    return name


def _family(key_id: str, records: Iterable[KeyRecord]) -> list[str]:
    children: dict[str, list[str]] = {}
    for record in records:
        if record.parent is not None:
            children.setdefault(record.parent, []).append(record.id)
    family = [key_id]
    for member in family:  # grows while it is walked; a key has one parent, older than itself
        family += children.get(member, [])
    return family


def _random_text(size: int) -> str:
    return b32encode(urandom(size)).decode().lower().rstrip("=")
