"""Whose a file of a flat root was: ``user.rootlesscontainers``, as umoci writes it.

https://github.com/rootless-containers/proto: a protobuf message of two numbers, uid and gid.
"""

ATTRIBUTE = "user.rootlesscontainers"
_UID, _GID = 0x08, 0x10  # fields 1 and 2, variable length
_NONE = 0xFFFFFFFF  # "as it is"


def owner_of(value: bytes) -> tuple[int, int] | None:
    """Return the owner; None where it says nothing, or what is no such message."""
    found = {_UID: 0, _GID: 0}
    at = 0
    while at < len(value):
        field = value[at]
        number, at = _number(value, at + 1)
        if field not in found or number is None or number > _NONE:
            return None
        found[field] = 0 if number == _NONE else number
    return (found[_UID], found[_GID]) if value else None


def _number(value: bytes, at: int) -> tuple[int | None, int]:
    """A varint and what follows it; None for one that does not end."""
    number = shift = 0
    while at < len(value) and shift < 64:
        number |= (value[at] & 0x7F) << shift
        at += 1
        if not value[at - 1] & 0x80:
            return number, at
        shift += 7
    return None, at
