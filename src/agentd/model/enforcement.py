"""What a wall really enforced."""

from collections.abc import Mapping

import msgspec


class Control(msgspec.Struct, frozen=True):
    """One control: what was asked (or "default"), whether it holds, and how.

    ``detail`` says what enforces it, or why nothing does.
    """

    asked: str
    enforced: bool
    detail: str = ""


Enforcement = Mapping[str, Control]
