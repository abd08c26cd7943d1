"""Copies what is in a volume, with all that a file has."""

import os
import subprocess
from collections.abc import Sequence

from agentd.model.errors import SandboxError

_PATH = "/usr/local/bin:/usr/bin:/bin"
_MOST = 500  # of what cp says


def copy_tree(source: str, folder: str, locks: Sequence[int], *, whole: bool = False) -> None:
    """Copy the file or directory ``source`` into ``folder``, under its own name, following no link.

    ``whole``: what is zero takes room as well.

    Nobody may write to it. cp(1) has the descriptors ``locks``, so that what they lock stays
    locked should we be killed before it ends. Raises SandboxError.
    """
    holes = "--sparse=never" if whole else "--sparse=auto"
    argv = ["cp", "-a", "--reflink=auto", holes, "--", source, folder]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=locks,
            env={"PATH": _PATH, "LANG": "C.UTF-8"},
            check=False,
        )
    except FileNotFoundError as error:
        raise SandboxError(
            "cp is not installed", remediation="install GNU coreutils: apt-get install coreutils"
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-_MOST:]
        raise SandboxError(
            f"{os.path.basename(source)} cannot be copied",
            cause=said or f"cp ended with {done.returncode}",
            remediation="make room, or have its files readable (chmod -R u+rX inside)",
        )
