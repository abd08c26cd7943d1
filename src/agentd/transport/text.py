"""Text that came from a guest, made safe to show."""

import os


def safe_text(text: str, limit: int = 200) -> str:
    """Return at most ``limit`` characters, with control, format and surrogate ones escaped."""
    cut = text[:limit]
    shown = cut if cut.isprintable() else "".join(map(_escape, cut))
    return shown + "..." if len(text) > limit else shown


def _escape(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def kernel_text(number: int, message: str) -> str:
    """Return the host's own words for an errno where it has them, else the guest's, made safe."""
    known = os.strerror(number) if 0 < number < 200 else "Unknown"
    return safe_text(message) if known.startswith("Unknown") else known
