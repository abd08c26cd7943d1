"""The options of the door suite, and its one mark."""

import pytest

from agentd.testing.doors.driver import REST


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agentd doors")
    group.addoption(
        "--door",
        action="append",
        metavar="MODULE:DRIVER",
        help=f"the driver of a door to test; may be given again (default: {REST})",
    )
    group.addoption(
        "--door-patience",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for what must come (default: 30)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "claims(name, ...): what a door must claim to be asked this")
    if config.getoption("--door"):  # what is none ends the run here, and not in each module
        from agentd.testing.doors.drivers import drivers

        drivers(config)
