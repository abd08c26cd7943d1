"""The suite of every wall, over ours: networks of rules."""

import contextlib

import pytest

from agentd import AgentdError, Sandbox
from agentd.testing.walls.test_network import *

pytestmark = pytest.mark.parametrize(
    "kind",
    ["fake", "host", "landlock", "linux", "oci", "gvisor", "linux over HTTP", "qemu"],
    indirect=True,
)


@pytest.fixture(scope="module", autouse=True)
def relay() -> None:
    """This process's, which stays: no test is to be the one that starts it."""
    with contextlib.suppress(AgentdError):
        Sandbox.create(embedded=True, net=[]).close()
