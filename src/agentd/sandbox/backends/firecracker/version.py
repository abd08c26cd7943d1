"""Which release of Firecracker does what: one place for every difference that matters to us.

Its API refuses unknown fields, so an optional one is sent only where the release has it. Numbers
with # are those of github.com/firecracker-microvm/firecracker.
"""

import re
from typing import NamedTuple

from agentd.model.errors import Refused

_TEXT = re.compile(r"\bv?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-([0-9A-Za-z.-]+))?")
_PREFERRED = "use Firecracker 1.16.1 or newer, or 1.15.1 or 1.14.4"
_FAULTLESS = _PREFERRED.replace("1.16.1", "1.17.0")


class Version(NamedTuple):
    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


#: /serial is there, log and metrics files are made by Firecracker itself, and guests of kernel
#: 6.17 and newer no longer corrupt vsock data (#5485).
OLDEST = Version(1, 14, 0)


def parse(text: str) -> Version:
    """Parse ``1.16.1``, ``Firecracker v1.16.1`` or ``1.17.0-dev``, which counts as 1.17.0.

    Raises Refused for what names none.
    """
    found = _TEXT.search(text)
    if found is None:
        raise Refused(f"{text[:80]!r} names no version", remediation=_PREFERRED)
    return Version(*(int(found[index]) for index in (1, 2, 3)))


class Quirks(NamedTuple):
    """The abilities of one release; the ``..._why`` fields are empty where it has them."""

    version: Version
    serial_limiter: bool
    restore_why: str
    pause_why: str


def quirks(version: Version) -> Quirks:
    """Raises Refused for a release that is too old."""
    if version < OLDEST:
        raise Refused(
            f"Firecracker {version} is too old", cause=f"it takes {OLDEST}", remediation=_PREFERRED
        )
    return Quirks(
        version=version,
        serial_limiter=version >= Version(1, 16, 0),
        restore_why=_restore_why(version),
        pause_why=_pause_why(version),
    )


def _restore_why(version: Version) -> str:
    if version == Version(1, 16, 0):
        return "vsock can be dead after a restore in 1.16.0 (#5958, #5969)"
    return ""


def _pause_why(version: Version) -> str:
    if version in (Version(1, 16, 0), Version(1, 16, 1)):
        why = f"after pause and resume no new vsock connection works in {version} (#6074)"
        return f"{why}: {_FAULTLESS}"  # the pause around a snapshot is no bare one, and works
    return ""


def lacks(found: Quirks) -> dict[str, str]:
    """Return the abilities that no machine of the release has, and why: of a snapshot that could
    not be used there is none."""
    kept = dict.fromkeys(("snapshot", "fork", "branch"), found.restore_why)
    return {name: why for name, why in ({"pause": found.pause_why} | kept).items() if why}


def check_restore(found: Quirks) -> None:
    """Raises Refused where a restored machine could not be reached."""
    if found.restore_why:
        raise Refused(
            f"Firecracker {found.version} cannot restore a snapshot",
            cause=found.restore_why,
            remediation=_FAULTLESS,
        )
