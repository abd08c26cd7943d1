"""A comparison of what is large: pytest's own has taken an hour over 3 MiB, where CI is set."""


def same(found: bytes | None, expected: bytes) -> None:
    """Fail where they differ, and say at which byte."""
    if found == expected:
        return
    if found is None:
        raise AssertionError(f"nothing, instead of {len(expected)} bytes")
    pairs = enumerate(zip(found, expected, strict=False))
    at = next((n for n, (a, b) in pairs if a != b), min(len(found), len(expected)))
    raise AssertionError(
        f"{len(found)} bytes instead of {len(expected)}; from byte {at} on"
        f" {found[at : at + 32]!r} instead of {expected[at : at + 32]!r}"
    )
