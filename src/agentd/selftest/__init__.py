"""Attacks run behind the walls of this machine, to see that each control stops what it must."""

from agentd.selftest.report import SelftestReport
from agentd.selftest.runner import Told, default_backends, selftest

__all__ = ["SelftestReport", "Told", "default_backends", "selftest"]
