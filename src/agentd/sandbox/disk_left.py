"""What is left of the disk of the state directory: for all that the daemon must write there."""

import os

from agentd.model.errors import Full
from agentd.model.units import readable_size

_LEFT_BYTES = 1 << 30  # or a sixteenth of the disk, if that is less


def check_left(folder: str, what: str, size: int = 0) -> None:
    """Raises Full where less is left of the disk of ``folder``, once ``size`` more bytes are
    taken; ``what`` there is to remove, "volume" or "snapshot", is named in the error."""
    disk = os.statvfs(folder)
    least = min(disk.f_blocks * disk.f_frsize // 16, _LEFT_BYTES)
    if disk.f_bavail * disk.f_frsize - size < least:
        raise Full(
            f"{what}s leave {readable_size(least)} of their disk, which is for all that the "
            "daemon writes",
            remediation=f"remove some: agentd {what} ls lists yours; or make room on it",
            retry_after=60.0,
        )
