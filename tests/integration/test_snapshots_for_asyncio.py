"""A snapshot that a task takes is asked without blocking its loop."""

import asyncio
import inspect
from typing import Any

import pytest
from tests.security.daemons import Daemon, fixture

from agentd import AgentdError, AsyncSandbox, Unsupported

daemon = fixture()


@pytest.mark.parametrize("of_daemon", [False, True])
def test_it_is_one_for_asyncio_and_makes_sandboxes(daemon: Daemon, of_daemon: bool) -> None:
    where: dict[str, Any] = {"url": daemon.url} if of_daemon else {"embedded": True}

    async def main() -> None:
        async with await AsyncSandbox.create(**where) as sandbox:
            await sandbox.run("echo kept > state")
            try:
                snapshot = await sandbox.snapshot()
            except Unsupported as error:
                pytest.skip(str(error))
        # The sandbox it was taken of has ended by now.
        async with snapshot:
            assert inspect.iscoroutinefunction(snapshot.delete)
            assert inspect.iscoroutinefunction(snapshot.export)
            assert snapshot.size > 0 and snapshot.id in repr(snapshot)
            assert (snapshot.url == daemon.url) is of_daemon
            again: dict[str, Any] = {} if of_daemon else where
            async with await AsyncSandbox.create(snapshot=snapshot, **again) as other:
                assert (await other.run("cat state")).text == "kept\n"
            await snapshot.delete()
            await snapshot.delete()
        with pytest.raises(AgentdError):
            await AsyncSandbox.create(snapshot=snapshot, **again)

    asyncio.run(main())
