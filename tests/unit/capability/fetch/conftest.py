import contextlib
import ssl
from collections.abc import Callable, Iterator

import pytest
from tests.unit.capability.fetch.authority import Authority
from tests.unit.capability.fetch.servers import Answer, Server


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts one: ``serve(answer)``."""
    with contextlib.ExitStack() as stack:

        def start(answer: Answer, tls: ssl.SSLContext | None = None) -> Server:
            return stack.enter_context(contextlib.closing(Server(answer, tls)))

        yield start


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), ["good.test"], ["127.0.0.1"])
