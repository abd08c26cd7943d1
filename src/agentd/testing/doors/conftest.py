"""One daemon for the run, with a listener for each door that is tested."""

import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver
from agentd.testing.doors.options import REST

_DRIVERS = pytest.StashKey[list[type[Driver]]]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "door" in metafunc.fixturenames:
        drivers = _drivers(metafunc.config)
        metafunc.parametrize(
            "door",
            range(len(drivers)),
            ids=[driver.door for driver in drivers],
            indirect=True,
            scope="session",
        )


def _drivers(config: pytest.Config) -> list[type[Driver]]:
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
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--door {name}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Driver) and found.door):
        raise pytest.UsageError(f"--door {name}: it is no Driver that names a door")
    return found


@pytest.fixture(scope="session")
def daemon(pytestconfig: pytest.Config) -> Iterator[Daemon]:
    """It, and at the end what is in it is ended."""
    names = [driver.door for driver in _drivers(pytestconfig)]
    with tempfile.TemporaryDirectory(prefix="agentd-doors-") as folder:
        made = Daemon(Path(folder), names, pytestconfig.getoption("--door-patience"))
        try:
            made.start()
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="session")
def door(request: pytest.FixtureRequest, daemon: Daemon) -> Driver:
    """The door under test, as its driver."""
    place: int = request.param
    return _drivers(request.config)[place](daemon.addresses[place], daemon)


@pytest.fixture(scope="session")
def number(door: Driver, daemon: Daemon) -> int:
    """Of the door, from 1, for callers that each door has to itself."""
    return daemon.addresses.index(door.address) + 1


@pytest.fixture(scope="session")
def hasty(number: int) -> str:
    """Who may ask BURST times, and no more."""
    return f"hasty-{number}"


@pytest.fixture(scope="session")
def alice(daemon: Daemon) -> Place:
    return Place(daemon, "alice")


@pytest.fixture(scope="session")
def denied(daemon: Daemon) -> Place:
    """Whose requests the policy denies."""
    return Place(daemon, "denied")


@pytest.fixture(scope="session")
def undecided(daemon: Daemon) -> Place:
    """Of whose requests the policy cannot say anything."""
    return Place(daemon, "undecided")


@pytest.fixture(autouse=True)
def _only_what_it_claims(request: pytest.FixtureRequest, door: Driver) -> None:
    """Skip, by name, what the door does not say of itself."""
    wanted = [name for mark in request.node.iter_markers("claims") for name in mark.args]
    if "operation" in request.fixturenames:
        wanted.append(request.getfixturevalue("operation").name)
    for name in wanted:
        if name not in door.claims:
            pytest.skip(f"the door {door.door} does not claim: {name}")
