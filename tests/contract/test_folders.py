"""The suite of every wall, over those of ours that can have folders of the host anywhere."""

import pytest

from agentd.testing.walls.test_folders import *

pytestmark = pytest.mark.parametrize(
    "kind", ["fake", "landlock", "linux", "oci", "gvisor", "linux over HTTP"], indirect=True
)
