"""A configuration as text again: what holds, and what said so."""

import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from agentd.daemon.config.lines import Path
from agentd.daemon.config.problem import basic_string, dotted, quoted
from agentd.daemon.config.schema import Config
from agentd.daemon.config.values import Duration, ListenAddress, Mode, Size


def plain(value: Any) -> Any:
    """Say a value as a file would: texts, numbers, lists and tables."""
    if value is None:
        return "none"
    if isinstance(value, Size | Duration | Mode | ListenAddress):
        return str(value)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, bool | int | float) else str(value)


def render(config: Config, source: Callable[[Path], str] | None = None) -> str:
    """Write one key a line, dotted: TOML that can be loaded, and means the same."""
    lines = list(_leaves(plain(config), ()))
    texts = [(path, f"{dotted(path)} = {_toml(value)}") for path, value in lines]
    if source is None:
        return "".join(f"{text}\n" for _, text in texts)
    width = min(60, max(len(text) for _, text in texts))
    return "".join(f"{text:<{width}}  # {source(path)}\n" for path, text in texts)


def leaves(config: Config) -> dict[str, Any]:
    """Return each value as a file would say it, by its dotted key."""
    return {dotted(path): value for path, value in _leaves(plain(config), ())}


def _leaves(tree: dict[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return basic_string(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{quoted(key)} = {_toml(item)}" for key, item in value.items())
        return "{" + pairs + "}"
    return repr(typing.cast("int | float", value))
