"""What a request asks for, as the types that it has: the host made it, and JSON brought it.

Standard library only.
"""

Request = dict[str, object]


def number(value: object) -> int:
    assert isinstance(value, int)  # noqa: S101  (the host made it; this narrows the type)
    return value


def strings(value: object) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else []


def dicts(value: object) -> list[dict[str, object]]:
    return value if isinstance(value, list) else []


def pairs(value: object) -> list[tuple[object, int]]:
    return value if isinstance(value, list) else []
