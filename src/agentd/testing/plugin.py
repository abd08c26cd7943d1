"""What agentd adds to pytest: the options of its suites, in a run that names one of them."""

from importlib.util import find_spec

import pytest

#: Each is a pytest plugin of a suite: its ``pytest_addoption``, and hooks for all of the run.
OPTIONS = ("agentd.testing.walls.options", "agentd.testing.doors.options")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, args: list[str]) -> None:
    """Load them late: the runs of other projects have no options of ours, and no plugin more."""
    if any("agentd.testing" in word.replace("/", ".") for word in args):
        for name in OPTIONS:
            if find_spec(name.rpartition(".")[0]) is not None:
                early_config.pluginmanager.import_plugin(name)
