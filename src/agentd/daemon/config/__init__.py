"""The daemon's configuration: a profile, a TOML file, AGENTD_SECTION__KEY variables, options."""

import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from agentd.daemon.config import reader, rules
from agentd.daemon.config.doubts import COUNTED, doubtful
from agentd.daemon.config.layers import Layers
from agentd.daemon.config.lines import Path
from agentd.daemon.config.problem import Problem, dotted
from agentd.daemon.config.profiles import PROFILES, meant
from agentd.daemon.config.render import leaves, plain, render
from agentd.daemon.config.schema import RELOADED, Config
from agentd.daemon.config.values import FilePath
from agentd.daemon.config_file import find
from agentd.model.errors import InvalidInput

__all__ = [
    "PROFILES",
    "RELOADED",
    "Changes",
    "Config",
    "Problem",
    "ReadConfig",
    "changes",
    "check",
    "doubts",
    "find",
    "load",
    "meant",
    "plain",
    "read",
    "render",
]

MAX_BYTES = 1 << 20
Options = Sequence[tuple[Sequence[str], Any]]  # path -> value, as the command line gives them


class ReadConfig(NamedTuple):
    """``config`` is there where there are no problems."""

    config: Config | None
    problems: list[Problem]
    layers: Layers
    path: str | None = None
    warnings: tuple[Problem, ...] = ()  # of a configuration without problems

    def whole(self) -> Config:
        """Return the configuration. Raises InvalidInput that names every problem."""
        if self.config is None:
            raise InvalidInput(
                f"the configuration{f' {self.path}' if self.path else ''} is wrong",
                cause="; ".join(str(problem) for problem in self.problems),
                # It reads the file and the environment, and not the command line.
                remediation="agentd config check shows it line by line"
                if any(problem.line for problem in self.problems)
                else "",
            )
        return self.config

    def text(self) -> str:
        """Write TOML that means the same, each line with what said so."""
        return render(self.whole(), self.layers.source)

    def plain(self) -> Any:
        return plain(self.whole())


class Changes(NamedTuple):
    """Dotted keys that differ: those that a running daemon takes over, and the others."""

    reloaded: tuple[str, ...]
    waiting: tuple[str, ...]


def check(path: str | None, env: Mapping[str, str] | None = None) -> list[Problem]:
    """List all that is wrong with the file and the environment, in the file's order."""
    return read(path, env).problems


def load(path: str | None, env: Mapping[str, str] | None = None, options: Options = ()) -> Config:
    """Load the configuration. Raises InvalidInput that names every problem.

    Folders that may be mounted are resolved now: whoever may write beside one could make it a link
    to any other later.
    """
    config = read(path, env, options).whole()
    mounts = tuple(FilePath(os.path.realpath(folder)) for folder in config.sandbox.mounts)
    sandbox = msgspec.structs.replace(config.sandbox, mounts=mounts)
    return msgspec.structs.replace(config, sandbox=sandbox)


def read(
    path: str | None, env: Mapping[str, str] | None = None, options: Options = ()
) -> ReadConfig:
    """Read it; ``path`` None is no file at all; ``env`` is the process's own unless given."""
    env = os.environ if env is None else env
    layers = Layers()
    said: dict[str, Any] = {}
    if path is not None:
        text, problem = _text(path)
        if problem is not None:
            return ReadConfig(None, [problem], layers, path)
        said = layers.add_file(text)
        if layers.problems:
            return ReadConfig(None, layers.problems, layers, path)
    layers.choose_profile(said.pop("profile", None), env, os.geteuid())
    layers.merge(said)
    layers.add_environment(env)
    for where, value in options:
        layers.give(where, value)
    typed = reader.ConfigReader(layers.problem)
    config = typed.read(layers.tree)
    problems = layers.problems + typed.problems
    if config is not None:
        problems += [layers.problem(*found) for found in rules.broken(config)]
    problems.sort(key=lambda problem: (problem.line, problem.key))
    if config is None or problems:
        return ReadConfig(None, problems, layers, path)
    # A preset is ours to answer for: it is as it is on every machine, but for what that counts.
    found = [doubt for doubt in doubtful(config) if _is_said(doubt[0], layers)]
    return ReadConfig(config, [], layers, path, tuple(layers.problem(*doubt) for doubt in found))


def doubts(config: Config) -> list[str]:
    """Return what a running daemon says of its configuration, in a line each. How much may be asked
    for at most, and what may be granted, is of no concern before somebody asks."""
    found = (
        (path, message, hint)
        for path, message, hint in doubtful(config)
        if path[:2] != ("limits", "max") and path[:1] != ("egress",)
    )
    return [str(Problem(0, dotted(path), message, hint)) for path, message, hint in found]


def _is_said(path: Path, layers: Layers) -> bool:
    source = layers.source(path)
    if source == "profile" and path[-1] in COUNTED:
        return True
    return source != "profile" and (source, path[0]) != ("default", "egress")


def changes(old: Config, new: Config) -> Changes:
    before, after = leaves(old), leaves(new)
    differing = sorted(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    )
    reloaded = tuple(key for key in differing if key.partition(".")[0] in RELOADED)
    return Changes(reloaded, tuple(key for key in differing if key not in reloaded))


def _text(path: str) -> tuple[str, Problem | None]:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_BYTES + 1)
        text = data.decode()
    except OSError as error:
        fix = "name a file that is there and that you may read"
        return "", Problem(0, "", f"cannot read {path}: {error.strerror}", fix)
    except UnicodeDecodeError as error:
        return "", Problem(data.count(b"\n", 0, error.start) + 1, "", "not UTF-8")
    if len(data) > MAX_BYTES:
        return "", Problem(0, "", f"{path} has more than {MAX_BYTES} bytes")
    if mode & stat.S_IWOTH:
        # Whoever can write it can make themselves admin.
        return "", Problem(0, "", f"everybody may write {path}: chmod o-w {path}")
    return text, None
