"""One daemon for the run, with a listener for each door that is tested."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.testing.doors.daemon import Daemon, Place
from agentd.testing.doors.driver import Driver
from agentd.testing.doors.drivers import drivers


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "door" in metafunc.fixturenames:
        found = drivers(metafunc.config)
        metafunc.parametrize(
            "door",
            range(len(found)),
            ids=[driver.door for driver in found],
            indirect=True,
            scope="session",
        )


@pytest.fixture(scope="session")
def daemon(pytestconfig: pytest.Config) -> Iterator[Daemon]:
    """It, and at the end what is in it is ended."""
    names = [driver.door for driver in drivers(pytestconfig)]
    with tempfile.TemporaryDirectory(prefix="agentd-doors-") as folder:
        made = Daemon(Path(folder), names, pytestconfig.getoption("--door-patience"))
        try:
            try:
                made.start()
            except AssertionError as error:  # for all cases: its package is not there, say
                pytest.exit(f"there is no door to test: {error}", returncode=4)
            yield made
        finally:
            made.stop()


@pytest.fixture(scope="session")
def door(request: pytest.FixtureRequest, daemon: Daemon) -> Driver:
    """The door under test, as its driver."""
    place: int = request.param
    return drivers(request.config)[place](daemon.addresses[place], daemon)


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
