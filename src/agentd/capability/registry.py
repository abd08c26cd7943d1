"""Every capability by its name: ours from one table, imported late; others' by entry point."""

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any, Protocol

import msgspec

from agentd.capability import schema
from agentd.capability.port import Capability
from agentd.model.capability import About
from agentd.model.errors import AgentdError, InvalidInput, NotFound, Unavailable
from agentd.model.system import os_errors_as, scarce

ENTRY_POINTS = "agentd.capabilities"
MAX_THIRD_PARTIES = 500
_MAX_NAME = 100
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+\.v[1-9][0-9]*")
_HERE = "agentd.capability.builtin"

BUILTIN: dict[str, str] = {
    "shell.exec.v1": f"{_HERE}.shell_exec:CAPABILITY",
    "python.exec.v1": f"{_HERE}.python_exec:CAPABILITY",
    "fs.read.v1": f"{_HERE}.fs_read:CAPABILITY",
    "fs.write.v1": f"{_HERE}.fs_write:CAPABILITY",
    "fs.list.v1": f"{_HERE}.fs_list:CAPABILITY",
    "fs.edit.v1": f"{_HERE}.fs_edit:CAPABILITY",
    "fs.search.v1": f"{_HERE}.fs_search:CAPABILITY",
    "archive.read.v1": f"{_HERE}.archive_read:CAPABILITY",
    "sqlite.query.v1": f"{_HERE}.sqlite_query:CAPABILITY",
    "http.fetch.v1": f"{_HERE}.http_fetch:CAPABILITY",
    "git.clone.v1": f"{_HERE}.git_clone:CAPABILITY",
}


class Point(Protocol):
    """The part of an importlib.metadata.EntryPoint that is used here."""

    @property
    def name(self) -> str: ...
    @property
    def value(self) -> str: ...


class Catalogue(msgspec.Struct, frozen=True):
    """``broken``: name -> why it cannot be used, its fix."""

    capabilities: tuple[Any, ...]  # Capability, which msgspec does not know
    broken: Mapping[str, AgentdError]


class Registry:
    """Thread-safe. Each capability is imported and checked once, when it is first asked for."""

    def __init__(self, points: Callable[[], Iterable[Point]] | None = None) -> None:
        """``points``: the third parties'; by default those of the packages that are installed."""
        self._find = points or _installed
        self._lock = threading.RLock()
        self._points: dict[str, list[str]] | None = None
        self._loaded: dict[str, Capability | AgentdError] = {}

    def names(self) -> tuple[str, ...]:
        """Ours, then third parties' in order; whether they work shows when they are loaded."""
        return (*BUILTIN, *(name for name in sorted(self._third_parties()) if name not in BUILTIN))

    def get(self, name: str) -> Capability:
        """Raises NotFound with the nearest names, Unavailable where it is there and broken."""
        with self._lock:
            found = self._loaded.get(name)
            if found is None:
                found = self._loaded[name] = self._load(name)
        if isinstance(found, AgentdError):
            raise type(found)(found.message, cause=found.cause, remediation=found.remediation)
        return found

    def use(self, capability: Capability) -> None:
        """Use it from now on in the place of the one with its name, set up for whoever has this."""
        with self._lock:
            self._loaded[capability.about.name] = capability

    def all(self) -> Catalogue:
        """List every one that can be used, and by name why others cannot."""
        found: list[Capability] = []
        broken: dict[str, AgentdError] = {}
        for name in self.names():
            try:
                found.append(self.get(name))
            except AgentdError as error:
                broken[name] = error
        for name in sorted(self._third_parties().keys() & BUILTIN.keys()):
            where = ", ".join(self._third_parties()[name])
            broken[f"{name} ({where})"] = Unavailable(
                f"{where} would replace {name}, which is agentd's own",
                remediation="give it another name, or uninstall its package",
            )
        return Catalogue(tuple(found), broken)

    def _load(self, name: str) -> Capability | AgentdError:
        if name in BUILTIN:
            return _checked(name, BUILTIN[name])
        wheres = self._third_parties().get(name, [])
        if not wheres:
            # Not kept: what nobody has must not fill the memory, and may be installed later.
            raise _unknown(name, self.names())
        if len(wheres) > 1:
            return Unavailable(
                f"capability {name} is in several packages",
                cause=", ".join(wheres),
                remediation="uninstall all but one of them",
            )
        return _checked(name, wheres[0])

    def _third_parties(self) -> dict[str, list[str]]:
        with self._lock:
            if self._points is None:
                found: dict[str, list[str]] = {}
                with os_errors_as(Unavailable, "other packages' capabilities cannot be found now"):
                    for point in islice(self._find(), MAX_THIRD_PARTIES):
                        found.setdefault(point.name, []).append(point.value)
                self._points = found
            return self._points


def check_name(name: str) -> None:
    """Raises InvalidInput."""
    if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name[:_MAX_NAME]!r} is no name of a capability",
            remediation="name it like text.count.v1: lower case, dots, its version",
        )


def _checked(name: str, where: str) -> Capability | AgentdError:
    """Return its object, or what is wrong with it: whatever it raises, the others stay.

    Raises Unavailable where the machine is short of something.
    """
    try:
        check_name(name)
        capability: Capability = _attribute(where)
        about = capability.about
        if not isinstance(about, About) or not callable(capability.run):
            raise TypeError("its object has no about or no run")
        if about.name != name:
            raise ValueError(f"it calls itself {about.name!r}")
        schema.check_schema(about)
    except Exception as error:
        if isinstance(error, OSError) and (fix := scarce(error)):
            # Not kept: it is the machine's matter, and nothing is wrong with the capability.
            raise Unavailable(
                f"capability {name} cannot be loaded now",
                cause=error.strerror or "",
                remediation=fix,
            ) from error
        text = str(error) if isinstance(error, AgentdError) else f"{type(error).__name__}: {error}"
        return Unavailable(
            f"capability {name} cannot be used",
            cause=f"{where}: {text[:500]}",
            remediation="reinstall agentd" if name in BUILTIN else "fix or uninstall its package",
        )
    return capability


_VERSION = re.compile(r"\.v[0-9]+\Z")


def _unknown(name: str, names: Iterable[str]) -> NotFound:
    # Without versions, which are alike whatever they are of.
    stems = {each.rpartition(".v")[0] or each: each for each in names}
    stem = _VERSION.sub("", name[:_MAX_NAME])
    near = [stems[each] for each in get_close_matches(stem, list(stems), n=3)]
    return NotFound(
        f"there is no capability {name[:_MAX_NAME]!r}",
        remediation=f"did you mean {' or '.join(near)}?" if near else "see agentd capability ls",
    )


def _attribute(where: str) -> Any:
    from importlib import import_module

    module, _, attribute = where.partition(":")
    return getattr(import_module(module), attribute)


def _installed() -> Iterable[Point]:
    # Reading every installed package's metadata costs 10 ms and more: never on the common path.
    from importlib.metadata import entry_points

    # Raises where no descriptor is left: then what follows would find nothing, and keep that.
    with open(os.devnull):
        pass
    return entry_points(group=ENTRY_POINTS)
