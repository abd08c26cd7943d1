"""What a command is started with, and why it could not be."""

import os
from collections.abc import Mapping
from typing import NamedTuple

STAGES = ("request", "cwd", "exec", "limits", "user", "pty")
STDIN_NONE, STDIN_STREAM = -1, -2
_NO_LIMITS: Mapping[str, int] = {}


class SpawnError(Exception):
    """No child came to be. ``stage`` is one of STAGES; ``errno`` is 0 when none fits; ``detail``
    says what the kernel has no word for."""

    def __init__(self, stage: str, code: int, message: str = "") -> None:
        super().__init__(message or os.strerror(code))
        self.stage = stage
        self.errno = code
        self.detail = ""


class SpawnRequest(NamedTuple):
    """A command to run. ``stdin`` is STDIN_NONE (/dev/null), STDIN_STREAM (a pipe) or a descriptor.

    ``env`` is merged over ``base_env`` unless ``replace_env``. ``stdout`` and ``stderr`` are
    descriptors to hand over, or None to be pumped. Whoever starts it closes the descriptors,
    whatever the outcome. ``limits`` maps the names in ``spawn.RLIMITS``, ``wall_ms`` and
    ``output`` to positive integers.
    """

    argv: list[str]
    cwd: str | None = None
    env: dict[str, str] | None = None
    replace_env: bool = False
    user: int | None = None
    stdin: int = STDIN_NONE
    stdout: int | None = None
    stderr: int | None = None
    pty: tuple[int, int] | None = None
    limits: Mapping[str, int] = _NO_LIMITS
    tag: str | None = None
