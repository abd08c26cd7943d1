"""The suite of every wall, over ours: networks of rules."""

import contextlib
from collections.abc import Iterator

import pytest

from agentd import AgentdError, Sandbox
from agentd.testing.walls.test_network import *

pytestmark = pytest.mark.parametrize(
    "kind",
    ["fake", "host", "landlock", "linux", "oci", "gvisor", "linux over HTTP", "qemu"],
    indirect=True,
)


@pytest.fixture(scope="module", autouse=True)
def relay() -> Iterator[None]:
    """This process's, and what reads requests, which a sandbox needs meanwhile: no test is to be
    the one that starts them."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(AgentdError):
            stack.enter_context(Sandbox.create(embedded=True, net=["read allowed.invalid"]))
        yield
