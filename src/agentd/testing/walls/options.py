"""Command line options of the wall suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agentd walls", "the wall suite of agentd")
    group.addoption(
        "--backend",
        metavar="NAME",
        help="the wall that is tested, as agentd doctor lists it; else the one agentd would take",
    )
    group.addoption(
        "--url",
        metavar="URL",
        help="the daemon that has the wall, as unix:PATH; else the wall is one of this process",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "shares_machine: changes nothing in a sandbox but its workspace"
    )
