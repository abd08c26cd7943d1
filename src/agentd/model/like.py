"""A value made of another one's fields: a view of a record, a result of a view."""

from typing import Any, TypeVar

import msgspec

S = TypeVar("S", bound=msgspec.Struct)


def like(kind: type[S], source: object, **others: Any) -> S:
    """Make a ``kind`` of ``others`` and, for the rest of its fields, of those that ``source`` has
    by the same names. Raises TypeError where one is missing that has no default."""
    rest = [name for name in kind.__struct_fields__ if name not in others]
    known = {name: getattr(source, name) for name in rest if hasattr(source, name)}
    return kind(**known, **others)
