"""What a value shows as: its repr, and what its ``_repr_*_`` methods make of it."""

import base64
import json
from typing import Any

MAX_TEXT = 256 << 10  # characters of a repr
# Bytes of all of its forms together, as JSON: half of a frame. A character may be twelve of them.
MAX_BUNDLE = 8 << 20
_METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "text/latex": "_repr_latex_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
    "image/jpeg": "_repr_jpeg_",
    "application/json": "_repr_json_",
}


def bundle_of(value: object) -> "dict[str, str]":
    """By media type; what is too large, or fails, is left out. Bytes are base64."""
    found = {"text/plain": _plain(value)}
    if isinstance(value, type):
        return found
    forms: dict[str, object] = {}
    bundle = _call(value, "_repr_mimebundle_")
    if isinstance(bundle, tuple) and bundle:
        bundle = bundle[0]
    if isinstance(bundle, dict):
        forms.update(bundle)
    for kind, method in _METHODS.items():
        if kind not in forms:
            form = _call(value, method)
            forms[kind] = form[0] if isinstance(form, tuple) and form else form
    return bounded({**forms, **found})


def bounded(forms: "dict[Any, Any]") -> "dict[str, str]":
    """Bound the forms, as text, the plain one first."""
    found: dict[str, str] = {}
    room = MAX_BUNDLE
    for kind in sorted(forms, key=lambda kind: kind != "text/plain"):
        text = _text(str(kind), forms[kind])
        size = 0 if text is None else len(json.dumps(text))
        if text is not None and size <= room and len(found) < 16:
            found[str(kind)[:100]] = text
            room -= size
    return found


def clean(text: str, most: int) -> str:
    """Replace lone surrogates, which no JSON can hold."""
    return text[:most].encode("utf-8", "backslashreplace").decode()


def _text(kind: str, form: object) -> "str | None":
    if isinstance(form, (bytes, bytearray)):
        return base64.b64encode(form).decode()
    if isinstance(form, str):
        return clean(form, MAX_TEXT if kind == "text/plain" else MAX_BUNDLE + 1)
    if form is not None and kind.endswith("json"):
        try:
            return json.dumps(form)
        except (TypeError, ValueError, RecursionError):
            return None
    return None


def _plain(value: object) -> str:
    try:
        return clean(repr(value), MAX_TEXT)
    except Exception as error:
        return f"<{type(value).__name__} whose repr failed: {type(error).__name__}>"


def _call(value: object, name: str) -> Any:
    try:
        method = getattr(value, name, None)
        return method() if callable(method) else None
    except Exception:
        return None
