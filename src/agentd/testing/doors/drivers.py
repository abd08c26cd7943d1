"""The drivers that ``--door`` names."""

import sys
from importlib import import_module

import pytest

from agentd.testing.doors.driver import REST, Driver

_DRIVERS = pytest.StashKey[list[type[Driver]]]()


def drivers(config: pytest.Config) -> list[type[Driver]]:
    """Return them, loaded once. Raises UsageError for what is none."""
    if _DRIVERS not in config.stash:
        named = config.getoption("--door") or [REST]
        config.stash[_DRIVERS] = [_driver(config, name) for name in named]
    return config.stash[_DRIVERS]


def _driver(config: pytest.Config, name: str) -> type[Driver]:
    module, _, attribute = name.partition(":")
    here = str(config.invocation_params.dir)
    if here not in sys.path:  # pytest does not look where one stands, python -m does
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:  # of no module at all
        raise pytest.UsageError(f"--door {name}: {error} (write it as MODULE:DRIVER)") from error
    if not (isinstance(found, type) and issubclass(found, Driver) and found.door):
        raise pytest.UsageError(f"--door {name}: it is no Driver that names a door")
    return found
