"""The suite of every wall, over ours: what some can and others refuse."""

import pytest

from agentd.testing.walls.test_abilities import *

# Of machines over HTTP the daemon's own tests ask this; each case of it boots one.
pytestmark = pytest.mark.parametrize(
    "kind",
    [
        *("fake", "host", "landlock", "linux", "oci", "gvisor"),
        *("linux over HTTP", "qemu", "firecracker"),
    ],
    indirect=True,
)
