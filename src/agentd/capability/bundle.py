"""A script of ``capability/inside`` as one text, together with the others there that it imports."""

import functools
import re

_PACKAGE = "agentd.capability.inside"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_IMPORT = re.compile(rf"^from {re.escape(_PACKAGE)}\.([a-z0-9_]+) import ", re.MULTILINE)
# An import looks into sys.modules first, so that there need be no package around a part.
_LOADER = """\
import sys, types
def part(name, text):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
"""


@functools.cache
def bundled(name: str) -> str:
    """Python source; the script runs in it as ``__main__``. Raises ValueError for no such name."""
    parts = [part for part in _ordered(name, []) if part != name]
    if not parts:
        return _text(name)
    loads = [f"part({f'{_PACKAGE}.{part}'!r}, {_text(part)!r})\n" for part in parts]
    main = f"exec(compile({_text(name)!r}, {name!r}, 'exec'))\n"
    return _LOADER + "".join(loads) + main


def _ordered(name: str, known: list[str]) -> list[str]:
    """Each part once, behind those that it needs."""
    for part in _IMPORT.findall(_text(name)):
        if part not in known:
            _ordered(part, known)
    known.append(name)
    return known


@functools.cache
def _text(name: str) -> str:
    from importlib.resources import files

    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} names no script")
    return files(_PACKAGE).joinpath(f"{name}.py").read_text("utf-8")
