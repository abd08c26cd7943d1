from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.audit.keypair import KeyPair
from agentd.audit.log import AuditLog


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return KeyPair.load_or_create(str(tmp_path_factory.mktemp("key") / "key"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    made = AuditLog(str(tmp_path / "audit"))
    yield made
    made.close()
