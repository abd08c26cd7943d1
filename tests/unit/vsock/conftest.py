from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.vsock.vmm import Vmm


@pytest.fixture
def vmm(tmp_path: Path) -> Iterator[Vmm]:
    """A device whose guest has started its driver."""
    with Vmm(tmp_path) as made:
        yield made.start()
