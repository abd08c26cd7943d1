"""The layers of a configuration, weakest first: profile, file, environment, command line."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from agentd.daemon.config import profiles
from agentd.daemon.config.lines import Path, lines_of
from agentd.daemon.config.problem import Problem, dotted

_VARIABLE = "AGENTD_"
_TOML_LINE = re.compile(r" \(at line (\d+), column \d+\)| \(at end of document\)")


class Layers:
    """``tree`` is as tomllib gives it; ``source`` tells what said a thing in it."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self._lines: dict[Path, int] = {}
        self._variables: dict[Path, str] = {}
        self._given: set[Path] = set()
        self._preset: dict[str, Any] = {}

    def source(self, path: Path) -> str:
        if (name := self._variable(path)) is not None:
            return name
        if path[:1] and any(path[:n] in self._given for n in range(1, len(path) + 1)):
            return "command line"
        if path in self._lines:
            return f"line {self._lines[path]}"
        return "profile" if _has(self._preset, path) else "default"

    def problem(self, path: Path, message: str, suggestion: str = "") -> Problem:
        name = self._variable(path)
        if name is None and path not in self._lines:
            # A section that is not there but for a variable in it.
            name = next((v for p, v in self._variables.items() if p[: len(path)] == path), None)
        if name is not None:
            return Problem(0, name, message, suggestion)
        line = next(
            (self._lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self._lines), 0
        )
        return Problem(line, dotted(path), message, suggestion)

    def add_file(self, text: str) -> dict[str, Any]:
        """Return what it says, which is not in the tree yet; {} where it is no TOML."""
        try:
            said = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            self.problems.append(_syntax(str(error), text))
            return {}
        self._lines = lines_of(text)
        return said

    def choose_profile(self, said: Any, env: Mapping[str, str], uid: int) -> None:
        """Lay the preset beneath all. ``AGENTD_PROFILE`` stands above what the file says."""
        if "AGENTD_PROFILE" in env:
            said = env["AGENTD_PROFILE"]
            self._variables["profile",] = "AGENTD_PROFILE"
        name = profiles.DEFAULT if said is None else said
        if not isinstance(name, str) or name not in profiles.PROFILES:
            hint = profiles.meant(str(name))
            self.problems.append(self.problem(("profile",), f"unknown profile {name!r}", hint))
            name = profiles.DEFAULT
        self._preset = profiles.preset(name, env, uid)
        self.tree = profiles.preset(name, env, uid)
        self.merge({"profile": name})

    def merge(self, upper: Mapping[str, Any]) -> None:
        _merge(self.tree, upper)

    def add_environment(self, env: Mapping[str, str]) -> None:
        """Add what ``AGENTD_SECTION__KEY=value`` says; a value is TOML, or else text."""
        for name in sorted(env):
            if name.startswith(_VARIABLE) and "__" in name:
                path: Path = tuple(
                    int(part) if part.isascii() and part.isdigit() else part
                    for part in name.removeprefix(_VARIABLE).lower().split("__")
                )
                if _put(self.tree, path, _value(env[name])):
                    self._variables[path] = name
                else:
                    self.problems.append(Problem(0, name, "names no key", _near_section(path)))

    def give(self, path: Sequence[str], value: Any) -> None:
        """Give settings from the command line."""
        _put(self.tree, tuple(path), value)
        self._given.add(tuple(path))

    def _variable(self, path: Path) -> str | None:
        prefixes = (path[:n] for n in range(len(path), 0, -1))
        return next((self._variables[p] for p in prefixes if p in self._variables), None)


def _merge(lower: dict[str, Any], upper: Mapping[str, Any]) -> None:
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            _merge(lower[key], value)
        else:
            # An array takes the place of the one below: half of a list is no one's wish.
            lower[key] = value


def _has(tree: Any, path: Path) -> bool:
    for part in path:
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _put(tree: dict[str, Any], path: Path, value: Any) -> bool:
    *parents, last = path
    here: Any = tree
    for part in parents:
        if isinstance(here, dict):
            here = here.setdefault(str(part), {})
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            return False
    if isinstance(here, dict) and last != "":
        here[str(last)] = value
        return True
    if isinstance(here, list) and isinstance(last, int) and last < len(here):
        here[last] = value
        return True
    return False


def _value(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # A line feed in it must not smuggle in other keys.
    return found["value"] if found.keys() == {"value"} else text


def _near_section(path: Path) -> str:
    return f"there is nothing at {dotted(path[:-1])!r} that it could be set in"


def _syntax(message: str, text: str) -> Problem:
    match = _TOML_LINE.search(message)
    end = len(text.splitlines())
    line = int(match[1]) if match and match[1] else end if match else 0
    plain = _TOML_LINE.sub("", message)
    return Problem(line, "", f"not TOML: {plain[:1].lower()}{plain[1:]}")
