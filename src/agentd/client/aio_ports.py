"""Ports and network of a sandbox for asyncio."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from agentd.client.aio_method import aio
from agentd.client.aio_thread import Threads
from agentd.client.forward import SandboxPorts
from agentd.client.network import NetworkControl
from agentd.client.signature import documented_by

R = TypeVar("R")


@documented_by(NetworkControl)
class AsyncNetworkControl:
    """The methods of NetworkControl as coroutines."""

    get = aio(NetworkControl.get)
    set = aio(NetworkControl.set)
    cassette = aio(NetworkControl.cassette)
    play = aio(NetworkControl.play)
    connections = aio(NetworkControl.connections)

    def __init__(self, threads: Threads, network: NetworkControl) -> None:
        self._threads = threads
        self._network = network

    async def _call(self, work: Callable[[NetworkControl], R]) -> R:
        return await self._threads.call(partial(work, self._network))


@documented_by(SandboxPorts)
class AsyncSandboxPorts:
    """The methods of SandboxPorts as coroutines. A connection for asyncio is one to
    ``(await sb.ports.forward(8080)).address``."""

    url = aio(SandboxPorts.url)
    link = aio(SandboxPorts.link)
    forward = aio(SandboxPorts.forward)
    open = aio(SandboxPorts.open)

    def __init__(self, threads: Threads, ports: SandboxPorts) -> None:
        self._threads = threads
        self._ports = ports

    async def _call(self, work: Callable[[SandboxPorts], R]) -> R:
        return await self._threads.call(partial(work, self._ports))
