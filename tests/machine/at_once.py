"""A plugin for pytest: shows a failure when it happens, where the end is an hour away."""

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n--- {report.nodeid} ({report.when}):\n{report.longreprtext}\n---", flush=True)
