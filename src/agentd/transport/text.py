"""Text that came from a guest, made safe to show."""


def safe_text(text: str, limit: int = 200) -> str:
    """Return at most ``limit`` characters, with control, format and surrogate ones escaped."""
    cut = text[:limit]
    shown = cut if cut.isprintable() else "".join(map(_escape, cut))
    return shown + "..." if len(text) > limit else shown


def _escape(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()
