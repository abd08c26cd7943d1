"""Packages that a sandbox is to have: what is asked for in one spelling, and what that became.

numpy                 the newest wheel that fits the sandbox's Python
numpy==2.1.3          that version; every operator of PEP 440 but ===
httpx[http2]>=0.27    with extras
"""

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from agentd.model.errors import InvalidInput
from agentd.model.mount import Mount

MAX_PACKAGES = 64  # that are asked for
MAX_ONE = 512  # characters of each
MAX_TEXT = 4 << 10  # characters of all of them
#: Where they are in a sandbox. At the process level, which puts nothing elsewhere, they are at
#: their own path.
PLACE = "/opt/agentd/packages"
#: A text with commas, or a list of texts.
Packages: TypeAlias = str | Iterable[str] | None

_SCRIPTS = "bin"
_FIX = "write a name, name==1.2 or name[extra]>=1, as PyPI has it"
_OPERATORS = "<>=!~"  # what comes behind a comma of one and the same requirement
# Those that mean nothing: beside a bracket, a comma or an operator.
_SPACES = re.compile(r" *([][(),]|[<>=!~]+) *")
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_BOUND = r"(?:===|==|!=|~=|<=|>=|<|>)[A-Za-z0-9._*+!-]+"
_BOUNDS = rf"{_BOUND}(?:,{_BOUND})*"
_REQUIREMENT = re.compile(
    rf"({_NAME})(?:\[((?:{_NAME}(?:,{_NAME})*)?)\])?({_BOUNDS}|\({_BOUNDS}\))?"
)


class LockedPackage(msgspec.Struct, frozen=True):
    """One that was found: ``wheel`` is the file, ``sha256`` its digest in hexadecimal."""

    name: str
    version: str
    wheel: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} sha256:{self.sha256}"


def packages_of(asked: Packages) -> tuple[str, ...]:
    """Return what is asked for, each in its one spelling, sorted. Raises InvalidInput."""
    if asked is None:
        return ()
    if isinstance(asked, str):
        asked = _split(asked)
    elif isinstance(asked, bytes | Mapping) or not isinstance(asked, Iterable):
        raise InvalidInput("packages are no list of names", remediation='write them as ["numpy"]')
    found: set[str] = set()
    for text in asked:
        found.add(_spelled(text))
        if len(found) > MAX_PACKAGES:
            raise InvalidInput(
                f"more than {MAX_PACKAGES} packages are asked for",
                remediation="ask for those that need the others, or make an image of them",
            )
    if sum(map(len, found)) > MAX_TEXT:
        raise InvalidInput(
            f"the packages that are asked for have over {MAX_TEXT} characters",
            remediation="ask for fewer, or with shorter bounds of their versions",
        )
    return tuple(sorted(found))


def check_place(mounts: Iterable[Mount]) -> None:
    """What is mounted over the packages, or in them, would hide them. Raises InvalidInput."""
    for mount in mounts:
        if f"{PLACE}/".startswith(f"{mount.target}/") or mount.target.startswith(f"{PLACE}/"):
            raise InvalidInput(
                f"mount target {mount.target!r} is in the way of the packages, at {PLACE}",
                remediation="choose another target, such as /data",
            )


def with_packages(asked: Mapping[str, str], usual: Mapping[str, str], place: str) -> dict[str, str]:
    """Return variables by which what lies at ``place`` is imported, and its programs are found,
    before all else: before what was ``asked`` for, or else ``usual``."""
    found = dict(asked)
    for name, first in (("PYTHONPATH", place), ("PATH", f"{place}/{_SCRIPTS}")):
        rest = asked.get(name, usual.get(name, "")).split(":")
        found[name] = ":".join([first, *(each for each in rest if each and each != first)])
    return found


def is_exact(package: str) -> bool:
    """Return whether a canonical text says which version it is."""
    return "==" in package and "*" not in package


def _split(text: str) -> list[str]:
    """Return the requirements of a text. A comma in brackets, or before a bound, ends none."""
    found, depth = [""], 0
    for at, letter in enumerate(text):
        depth += (letter in "[(") - (letter in "])")
        rest = text[at + 1 :].lstrip()
        if letter == "," and depth <= 0 and rest[:1] not in tuple(_OPERATORS):
            found.append("")
        else:
            found[-1] += letter
    return found


def _spelled(text: object) -> str:
    """The grammar is the part of PEP 508 that needs nothing but the index: what a version may be,
    pip says, in a sandbox."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f"package {text!r} is not a name", remediation=_FIX)
    found = (
        _REQUIREMENT.fullmatch(_SPACES.sub(r"\1", text.strip(" ")))
        if len(text) <= MAX_ONE
        else None
    )
    if found is None:
        raise InvalidInput(f"package {text[:80]!r} is not a name", remediation=_fix(text))
    name, extras, bounds = found[1], found[2] or "", found[3] or ""
    if "===" in bounds:
        raise InvalidInput(f"package {text[:80]!r} is bound by ===", remediation="write ==")
    wanted = ",".join(sorted({_canonical(extra) for extra in extras.split(",") if extra}))
    bound = ",".join(sorted(bounds.strip("()").split(",")))
    return _canonical(name) + (f"[{wanted}]" if wanted else "") + bound


def _fix(text: str) -> str:
    """Nothing is fetched by its address, and no code of a package runs while it is fetched."""
    if "@" in text or "://" in text:
        return (
            "packages come from the index alone, by name: fetch others in the sandbox, or set "
            "packages.index in the configuration"
        )
    if ";" in text:
        return "ask for it without the condition, or leave it out"
    if "/" in text or text.strip().startswith("."):
        return "packages come from the index alone, by name; mount a folder of your own: --mount"
    return _FIX


def _canonical(name: str) -> str:
    """As PEP 503 has it."""
    return re.sub(r"[-_.]+", "-", name).lower()
