"""One thing, three names: ``--memory`` on the command line, ``memory=`` in Python, ``"memory"`` in
JSON. Messages are written with the first; each door says them in its own words."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from agentd.model.options import ExecOptions, SandboxOptions
from agentd.model.result import Cause

if TYPE_CHECKING:
    from agentd.model.api import CallView

# As JSON and Python call it -> as the command line does, where that differs by more than a dash.
_OPTIONS = {"mounts": "mount"}
_NAMES = {*SandboxOptions.__annotations__, *ExecOptions.__annotations__, "ttl", "labels", "on_idle"}
_FROM_OPTION = {_OPTIONS.get(name, name).replace("_", "-"): name for name in _NAMES}
_CHOICES = {"isolation", "backend", "net", "on_idle"}
# Another program's options, and whole commands, are left as they are.
_OPTION = re.compile(
    r"(?:systemd-run|docker run|podman run|agentd [a-z]+) [^);`]*"
    r"|--([a-z][a-z-]*)(?: ([a-z]+)(?=[ ,;)]|$))?"
)
_KEY = re.compile(r'"([a-z_]+)"(?:: "([a-z-]+)")?')
Spell = Callable[[str, str], str]  # of a name, and of its value or ""


def spelled(text: str, spell: Spell, more: frozenset[str] = frozenset()) -> str:
    """``text`` with each option as ``spell`` has it; ``more`` are names besides those of all."""

    def each(found: re.Match[str]) -> str:
        option, value = found[1] or "", found[2] or ""
        name = _FROM_OPTION.get(option) or (option if option in more else None)
        if name is None:
            return found[0]
        said = spell(name, value if name in _CHOICES else "")
        return said if name in _CHOICES or not value else f"{said} {value}"

    return _OPTION.sub(each, text)


def in_json(text: str) -> str:
    """``drop --backend linux`` is ``drop "backend": "linux"``."""
    if "--" not in text:
        return text
    return spelled(text, lambda name, value: f'"{name}": "{value}"' if value else f'"{name}"')


def in_options(text: str) -> str:
    """Return what ``in_json`` said, as it was before."""

    def each(found: re.Match[str]) -> str:
        name = found[1]
        if name not in _NAMES or (found[2] and name not in _CHOICES):
            return found[0]
        option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        return f"{option} {found[2]}" if found[2] else option

    return _KEY.sub(each, text) if '"' in text else text


def cause(of: Cause, said: Callable[[str], str]) -> Cause:
    """Return it with its texts as ``said`` has them."""
    message, remediation = said(of.message), said(of.remediation)
    if (message, remediation) == (of.message, of.remediation):
        return of
    return msgspec.structs.replace(of, message=message, remediation=remediation)


def call(view: "CallView", said: Callable[[str], str]) -> "CallView":
    """Word its cause, and that in its value where a command was run, as ``said`` does."""
    told, inner = cause(view.cause, said), view.value.get("cause")
    value = view.value
    if isinstance(inner, dict):
        texts = {key: said(text) if isinstance(text, str) else text for key, text in inner.items()}
        value = {**value, "cause": texts}
    return msgspec.structs.replace(view, cause=told, value=value)
