"""How servers spell a value that they give back: in JSON, HTML, a URL, base64. Pure."""

import base64
import re
from collections.abc import Mapping
from html import escape
from urllib.parse import quote

# What encoders of JSON write as \u00XX beside what they have to quote: none; Go and Rails; PHP's
# JSON_HEX_*; .NET.
_IN_JSON = ("", "<>&", "<>&'", "<>&'\"", "<>&'\"+`")
# What encoders of HTML write in place of a character: Go and MarkupSafe, PHP, mustache,
# handlebars, .NET. Of html.escape's there are two more.
_NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
_IN_HTML = (
    _NAMED | {'"': "&#34;", "'": "&#39;"},
    _NAMED | {'"': "&#34;", "'": "&#39;", "+": "&#43;"},
    _NAMED | {"'": "&#39;"},
    _NAMED | {"'": "&#039;"},
    _NAMED | {"'": "&#39;", "/": "&#x2F;", "`": "&#x60;", "=": "&#x3D;"},
    _NAMED | {"'": "&#x27;", "`": "&#x60;", "=": "&#x3D;"},
    _NAMED | {"'": "&#x27;", "`": "&#x60;", "+": "&#x2B;"},
)


def spellings(text: bytes) -> set[bytes]:
    """Return a value as servers write it: in JSON, HTML, a URL."""
    said = text.decode()
    spelled = {said, escape(said), escape(said, quote=False)}
    spelled |= {_spelled(said, each) for each in _IN_HTML}
    for escaped in _IN_JSON:
        for digits in ("x", "X"):
            in_json = _spelled(said, _json_escapes(escaped, digits))
            spelled |= {in_json, in_json.replace("/", "\\/")}
    for safe in ("", "/", ":@", ":@/"):
        quoted = quote(said, safe=safe)
        for each in (quoted, _lower_escapes(quoted)):
            spelled |= {each, each.replace("%20", "+")}
    return {each.encode() for each in spelled}


def in_base64(text: bytes) -> set[bytes]:
    """Return what all that has it has in base64, wherever it begins: but for its first and last
    character, whose bits are shared with what is around it."""
    found: set[bytes] = set()
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(text)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(before) + text)[first:end])
    return found


def _spelled(said: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(letter, letter) for letter in said)


def _json_escapes(escaped: str, digits: str) -> dict[str, str]:
    usual = {'"': '\\"', "\\": "\\\\"}
    return usual | {each: f"\\u{ord(each):04{digits}}" for each in escaped}


def _lower_escapes(quoted: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
