from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.ingest.harness import Running


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path) as made:
        yield made
