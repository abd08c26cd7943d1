import pytest

from agentd.model.errors import Refused
from agentd.sandbox.backends.firecracker.version import (
    Version,
    check_restore,
    parse,
    quirks,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.16.1", (1, 16, 1)),
        ("Firecracker v1.15.1", (1, 15, 1)),
        ("Jailer v1.14.4", (1, 14, 4)),
        ("1.17.0-dev", (1, 17, 0)),
    ],
)
def test_versions_are_read(text: str, version: tuple[int, int, int]) -> None:
    assert parse(text) == Version(*version)


@pytest.mark.parametrize("text", ["", "Firecracker", "1.16", "v1.x.2", "\x1b[31m"])
def test_what_names_no_version_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="names no version"):
        parse(text)


# version: serial limiter, restore, pause
TABLE = {
    "1.14.0": (False, True, True),
    "1.14.3": (False, True, True),
    "1.14.4": (False, True, True),
    "1.15.0": (False, True, True),
    "1.15.1": (False, True, True),
    "1.16.0": (True, False, False),
    "1.16.1": (True, True, False),
    "1.17.0": (True, True, True),
    "2.0.0": (True, True, True),
}


@pytest.mark.parametrize("text", TABLE)
def test_what_each_release_can_do(text: str) -> None:
    found = quirks(parse(text))
    assert TABLE[text] == (
        found.serial_limiter,
        not found.restore_why,
        not found.pause_why,
    )


@pytest.mark.parametrize("text", ["0.25.2", "1.0.0", "1.13.1"])
def test_older_releases_are_refused_with_what_to_use(text: str) -> None:
    with pytest.raises(Refused, match=r"too old.*1\.16\.1") as caught:
        quirks(parse(text))
    assert "1.14.4" in caught.value.remediation


def test_a_refusal_says_why_and_names_a_release_that_can() -> None:
    with pytest.raises(Refused, match=r"cannot restore.*#5958.*1\.17\.0"):
        check_restore(quirks(parse("1.16.0")))
    check_restore(quirks(parse("1.16.1")))
