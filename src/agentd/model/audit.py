"""What the audit log holds: events as they are given to it, records as they stand in it."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from agentd.model.errors import InvalidInput


class Kind(StrEnum):
    ADMISSION = "admission"  # a policy allowed it
    DENIAL = "denial"  # a policy, a scope or a quota refused it
    UNDECIDED = "undecided"  # a policy could not decide, so it was refused
    START = "start"  # of an execution
    END = "end"
    KEY_CREATED = "key_created"
    KEY_REVOKED = "key_revoked"
    SNAPSHOT_EXPORTED = "snapshot_exported"
    SNAPSHOT_DELETED = "snapshot_deleted"
    VOLUME_CREATED = "volume_created"
    VOLUME_DELETED = "volume_deleted"
    SECRET_SET = "secret_set"  # noqa: S105  (a kind, and no password)
    SECRET_REMOVED = "secret_removed"  # noqa: S105
    POLICY_CHANGED = "policy_changed"
    APPROVAL_ASKED = "approval_asked"
    APPROVAL_DECIDED = "approval_decided"
    APPROVAL_EXPIRED = "approval_expired"
    SANDBOX_CREATED = "sandbox_created"
    SANDBOX_ENDED = "sandbox_ended"
    # Of the log itself:
    OPENED = "opened"  # a writer has opened it
    CUT = "cut"  # a torn end, left by a crash, was moved aside
    LOSS = "loss"  # events that could not be written, or not be sent on
    RETIRED = "retired"  # old files were deleted, as was configured


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. ``fields`` are plain JSON values.

    Fields named like secrets are hidden (model/redact.py): "key", "token" and "env" are such names.
    """

    kind: Kind
    principal: str = ""
    request: str = ""  # its id
    sandbox: str = ""  # its id
    capability: str = ""
    fields: Mapping[str, Any] = {}


class Position(msgspec.Struct, frozen=True):
    """The position of a record in the chain; kept elsewhere, it proves what the log held up to
    there.

    ``seq`` counts from 1; ``hash`` is 64 hexadecimal digits.
    """

    seq: int
    hash: str

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Parse ``SEQ:HASH``. Raises InvalidInput."""
        seq, _, digest = text.strip().partition(":")
        good = seq.isascii() and seq.isdecimal() and len(seq) < 20 and int(seq) > 0
        if not good or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise InvalidInput(
                f"{text!r} is no position in an audit log",
                remediation="write it as SEQ:HASH, the hash in 64 lower-case hexadecimal digits",
            )
        return cls(int(seq), digest)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the log. ``time`` is RFC 3339, in UTC."""

    seq: int
    prev: str
    kind: str  # of a later version, perhaps
    time: str
    principal: str = ""
    request: str = ""
    sandbox: str = ""
    capability: str = ""
    fields: Mapping[str, Any] = {}
    hash: str

    @property
    def position(self) -> Position:
        return Position(self.seq, self.hash)
