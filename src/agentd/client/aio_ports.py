"""Ports and network of a sandbox for asyncio."""

from agentd.client.aio_method import AioOnThreads, aio
from agentd.client.aio_stream import AsyncPort, aio_as
from agentd.client.forward import SandboxPorts
from agentd.client.network import NetworkControl
from agentd.client.signature import documented_by


@documented_by(NetworkControl)
class AsyncNetworkControl(AioOnThreads[NetworkControl]):
    """The methods of NetworkControl as coroutines."""

    get = aio(NetworkControl.get)
    set = aio(NetworkControl.set)
    cassette = aio(NetworkControl.cassette)
    play = aio(NetworkControl.play)
    connections = aio(NetworkControl.connections)


@documented_by(SandboxPorts)
class AsyncSandboxPorts(AioOnThreads[SandboxPorts]):
    """The methods of SandboxPorts as coroutines. A connection for asyncio is one to
    ``(await sb.ports.forward(8080)).address``."""

    url = aio(SandboxPorts.url)
    link = aio(SandboxPorts.link)
    forward = aio(SandboxPorts.forward)
    open = aio_as(AsyncPort, SandboxPorts.open)
