"""Bytes as JSON, and back: text where they are text, else base64."""

import binascii
import re
from base64 import b64decode, b64encode

from agentd.model.errors import InvalidInput

# What JSON writes as \u00XX: six bytes for one.
_ESCAPED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def encoded(*pieces: bytes) -> tuple[list[str], str]:
    """Each of ``pieces`` as a string, and the encoding of all: "utf-8" or "base64".

    No longer as JSON than base64 would be, or twice the bytes: text full of control codes is
    base64, too.
    """
    try:
        texts = [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        texts = []
    if texts and all(_is_text(text) for text in texts):
        return texts, "utf-8"
    return [as_base64(piece) for piece in pieces], "base64"


def as_base64(data: bytes) -> str:
    return b64encode(data).decode()


def decoded(text: str, encoding: str) -> bytes:
    """Return the bytes that a parameter stands for. Raises InvalidInput."""
    if encoding == "utf-8":
        return text.encode()
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(
            "the text is not base64", remediation="encode it, or say that its encoding is utf-8"
        ) from None


def _is_text(text: str) -> bool:
    if "\0" in text:
        return False
    return 5 * len(_ESCAPED.findall(text)) <= len(text) // 4 + 64
