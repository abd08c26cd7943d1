"""The suite of every wall, over ours: limits."""

from typing import Any

import pytest

from agentd import Sandbox
from agentd.linux.cgroup import Hierarchy
from agentd.sandbox.backends.cgroups import own_hierarchy
from agentd.testing.walls.test_limits import *


@pytest.mark.shares_machine
def test_memory_has_a_default_limit_wherever_that_can_be(kind: Any, sandbox: Sandbox) -> None:
    hierarchy = own_hierarchy()
    held = isinstance(hierarchy, Hierarchy) and "memory" in hierarchy.controllers
    # A virtual machine holds its own, whoever runs it; the fake has no wall.
    expected = kind.name != "fake" and (held or sandbox.info.level == "microvm")
    assert sandbox.enforcement["memory"].enforced is expected
