"""What a wall really enforced."""

from collections.abc import Mapping

import msgspec


class Control(msgspec.Struct, frozen=True):
    """A control: what was asked (or "default"), whether it holds, and how.

    ``detail`` says what enforces it, or why nothing does.
    """

    asked: str
    enforced: bool
    detail: str = ""


Enforcement = Mapping[str, Control]
LIMITS = ("memory", "cpus", "pids", "disk", "open_files")
_DEFAULT = "default"


def unheld(enforcement: Enforcement) -> dict[str, Control]:
    """Return the limits that a sandbox has by default and that nothing enforces.

    One that was asked for and cannot be enforced is refused before.
    """
    found = {name: enforcement[name] for name in LIMITS if name in enforcement}
    return {
        name: control
        for name, control in found.items()
        if not control.enforced and control.asked.startswith(_DEFAULT)
    }


def unlimited(missing: Enforcement) -> str:
    """``unheld`` in a few words: ``memory is not limited (default 1G)``; empty where all hold."""
    if not missing:
        return ""
    names = ", ".join(name.replace("_", " ") for name in missing)
    asked = ", ".join(control.asked.removeprefix(_DEFAULT).strip() for control in missing.values())
    return f"{names} {'is' if len(missing) == 1 else 'are'} not limited (default {asked})"


def reasons(missing: Enforcement) -> str:
    """Return why nothing enforces them, each reason once."""
    return "; ".join(dict.fromkeys(control.detail for control in missing.values()))
