"""Attacks run behind the walls of this machine, to see that each control stops what it must."""

from agentd.selftest.report import Report
from agentd.selftest.runner import Told, default_backends, selftest

__all__ = ["Report", "Told", "default_backends", "selftest"]
