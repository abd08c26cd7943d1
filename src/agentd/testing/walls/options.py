"""Command line options of the wall suite."""

import pytest

from agentd.testing.patience import SLOWER

#: For a case that hangs, by pytest-timeout; the longest takes a few.
SECONDS = 600


#: Each is an ability as well.
COPIES = ("fork", "snapshot")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agentd walls", "the wall suite of agentd")
    group.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="a wall that is tested, as agentd doctor lists it; else the one agentd would take",
    )
    group.addoption(
        "--url",
        metavar="URL",
        help="the daemon that has the wall, as unix:PATH; else the wall is one of this process",
    )
    group.addoption(
        "--image",
        metavar="NAME",
        help="an image that sandboxes start of; it must have a shell; else they start of none",
    )
    group.addoption(
        "--copies",
        choices=COPIES,
        help="ask all of it of copies: forks, or what is restored of snapshots, of new sandboxes",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "shares_machine: changes nothing in a sandbox but its workspace"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("timeout"):
        return
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS * SLOWER))
