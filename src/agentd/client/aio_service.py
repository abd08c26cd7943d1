"""The SDK's client of a daemon for asyncio, made of the contract's own methods."""

from typing import Any, Self

from agentd.client.aio_method import AioOnThreads, aio, aio_each
from agentd.client.aio_stream import AsyncOutput, AsyncPort, aio_as
from agentd.client.aio_thread import Threads
from agentd.client.http.connection import MAX_OPEN
from agentd.client.service import Client
from agentd.model import service


class _Noun(AioOnThreads[Any]):
    """Makes requests on the client's own threads: none of the loop's, which its end waits for. One
    that is given up by a task that is cancelled may have been done or not."""


class AsyncSandboxes(_Noun):
    create = aio(service.Sandboxes.create)
    get_or_create = aio(service.Sandboxes.get_or_create)
    list = aio(service.Sandboxes.list)
    get = aio(service.Sandboxes.get)
    relabel = aio(service.Sandboxes.relabel)
    renew = aio(service.Sandboxes.renew)
    pause = aio(service.Sandboxes.pause)
    resume = aio(service.Sandboxes.resume)
    kill = aio(service.Sandboxes.kill)
    snapshot = aio(service.Sandboxes.snapshot)
    fork = aio(service.Sandboxes.fork)
    commit = aio(service.Sandboxes.commit)
    changes = aio(service.Sandboxes.changes)
    apply = aio(service.Sandboxes.apply)


class AsyncCommands(_Noun):
    exec = aio(service.Commands.exec)
    start = aio(service.Commands.start)
    run = aio(service.Commands.run)
    list = aio(service.Commands.list)
    get = aio(service.Commands.get)
    output = aio(service.Commands.output)
    follow = aio_as(AsyncOutput, service.Commands.follow)
    write = aio(service.Commands.write)
    signal = aio(service.Commands.signal)
    resize = aio(service.Commands.resize)


class AsyncSandboxFiles(_Noun):
    read = aio_each(service.Files.read)
    write = aio(service.Files.write)
    list = aio(service.Files.list)
    stat = aio(service.Files.stat)
    mkdir = aio(service.Files.mkdir)
    move = aio(service.Files.move)
    remove = aio(service.Files.remove)
    watch = aio_each(service.Files.watch)
    read_tar = aio_each(service.Files.read_tar)
    write_tar = aio(service.Files.write_tar)


class AsyncPorts(_Noun):
    open = aio_as(AsyncPort, service.Ports.open)
    link = aio(service.Ports.link)


class AsyncNetwork(_Noun):
    get = aio(service.Network.get)
    set = aio(service.Network.set)
    cassette = aio(service.Network.cassette)
    play = aio(service.Network.play)
    connections = aio(service.Network.connections)


class AsyncSnapshots(_Noun):
    list = aio(service.Snapshots.list)
    get = aio(service.Snapshots.get)
    export = aio_each(service.Snapshots.export)
    delete = aio(service.Snapshots.delete)


class AsyncVolumes(_Noun):
    create = aio(service.Volumes.create)
    list = aio(service.Volumes.list)
    get = aio(service.Volumes.get)
    snapshot = aio(service.Volumes.snapshot)
    delete = aio(service.Volumes.delete)


class AsyncSecrets(_Noun):
    set = aio(service.Secrets.set)
    list = aio(service.Secrets.list)
    delete = aio(service.Secrets.delete)


class AsyncCapabilities(_Noun):
    list = aio(service.Capabilities.list)
    call = aio(service.Capabilities.call)
    request = aio(service.Capabilities.request)


class AsyncReceipts(_Noun):
    get = aio(service.Receipts.get)
    key = aio(service.Receipts.key)


class AsyncKeys(_Noun):
    create = aio(service.Keys.create)
    list = aio(service.Keys.list)
    get = aio(service.Keys.get)
    revoke = aio(service.Keys.revoke)


class AsyncApprovals(_Noun):
    list = aio(service.Approvals.list)
    get = aio(service.Approvals.get)
    decide = aio(service.Approvals.decide)
    withdraw = aio(service.Approvals.withdraw)


class AsyncAudit(_Noun):
    head = aio(service.Audit.head)
    records = aio(service.Audit.records)


class AsyncEvents(_Noun):
    read = aio(service.Events.read)


class AsyncMachine(_Noun):
    version = aio(service.Machine.version)
    backends = aio(service.Machine.backends)
    templates = aio(service.Machine.templates)
    stats = aio(service.Machine.stats)


class AsyncClient:
    """A Client for asyncio: the same nouns, their methods as coroutines; those that give pieces are
    for ``async for``."""

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        self._client = Client(url, api_key=api_key)
        self._threads = Threads("agentd-client", MAX_OPEN)
        self.sandboxes = AsyncSandboxes(self._threads, self._client.sandboxes)
        self.commands = AsyncCommands(self._threads, self._client.commands)
        self.files = AsyncSandboxFiles(self._threads, self._client.files)
        self.ports = AsyncPorts(self._threads, self._client.ports)
        self.network = AsyncNetwork(self._threads, self._client.network)
        self.snapshots = AsyncSnapshots(self._threads, self._client.snapshots)
        self.volumes = AsyncVolumes(self._threads, self._client.volumes)
        self.secrets = AsyncSecrets(self._threads, self._client.secrets)
        self.capabilities = AsyncCapabilities(self._threads, self._client.capabilities)
        self.receipts = AsyncReceipts(self._threads, self._client.receipts)
        self.keys = AsyncKeys(self._threads, self._client.keys)
        self.approvals = AsyncApprovals(self._threads, self._client.approvals)
        self.audit = AsyncAudit(self._threads, self._client.audit)
        self.events = AsyncEvents(self._threads, self._client.events)
        self.machine = AsyncMachine(self._threads, self._client.machine)

    @property
    def url(self) -> str:
        """Return the daemon's address."""
        return self._client.url

    async def close(self) -> None:
        """Close its connections; idempotent."""
        self._client.close()
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.url}>"
