"""The SDK's client of a daemon: what a caller may ask beside the sandboxes that it holds."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from agentd.client import wording
from agentd.client.http import address
from agentd.client.http import client as clients
from agentd.client.http.service import HttpService
from agentd.model import service

P = ParamSpec("P")
R = TypeVar("R")


class Client:
    """A daemon, by nouns: list and find sandboxes, look at commands, receipts, keys, the audit log.

    ``url`` (else AGENTD_URL, else a daemon at its usual place) is unix:PATH or https://HOST:PORT;
    ``api_key`` (else AGENTD_API_KEY) says who asks. Thread-safe. ``close`` it, or use it in a with
    statement. Raises InvalidInput where there is no daemon; its methods raise Unreachable, and what
    the daemon says: Forbidden, NotFound, ...
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        with wording.spoken():
            self._requests = clients.Client(address.find(url, api_key))
        asked: service.Service = HttpService(self._requests)
        self._service = asked

    @property
    def url(self) -> str:
        """The daemon's address."""
        return str(self._requests.address)

    @property
    def sandboxes(self) -> service.Sandboxes:
        """Sandboxes: list, get, relabel, renew, pause, resume, kill."""
        return self._service.sandboxes

    @property
    def commands(self) -> service.Commands:
        """Commands of a sandbox: list, get, output, signal."""
        return self._service.commands

    @property
    def snapshots(self) -> service.Snapshots:
        """Snapshots: list, get, delete."""
        return self._service.snapshots

    @property
    def capabilities(self) -> service.Capabilities:
        """Capabilities: list, call."""
        return self._service.capabilities

    @property
    def receipts(self) -> service.Receipts:
        """Signed receipts: get, and the key that they verify with."""
        return self._service.receipts

    @property
    def keys(self) -> service.Keys:
        """API keys: create, list, get, revoke."""
        return self._service.keys

    @property
    def approvals(self) -> service.Approvals:
        """Requests that wait for somebody: list, get, decide, withdraw."""
        return self._service.approvals

    @property
    def audit(self) -> service.Audit:
        """The audit log: head, records."""
        return self._service.audit

    @property
    def machine(self) -> service.Machine:
        """The daemon itself: version, backends, stats."""
        return self._service.machine

    def close(self) -> None:
        """Close its connections; idempotent."""
        self._requests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.url}>"


class _Noun:
    def __init__(self, noun: Any) -> None:
        self._noun = noun


def aio(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], Awaitable[R]]:
    """Make a coroutine of a contract's method: the same parameters, the same answer, in a thread.

    A task that is cancelled stops waiting; the request is still answered.
    """

    async def awaited(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        call: Callable[P, R] = getattr(self._noun, method.__name__)
        return await asyncio.to_thread(call, *args, **kwargs)

    functools.update_wrapper(awaited, method)
    return awaited


class AsyncSandboxes(_Noun):
    list = aio(service.Sandboxes.list)
    get = aio(service.Sandboxes.get)
    relabel = aio(service.Sandboxes.relabel)
    renew = aio(service.Sandboxes.renew)
    pause = aio(service.Sandboxes.pause)
    resume = aio(service.Sandboxes.resume)
    kill = aio(service.Sandboxes.kill)


class AsyncCommands(_Noun):
    list = aio(service.Commands.list)
    get = aio(service.Commands.get)
    output = aio(service.Commands.output)
    signal = aio(service.Commands.signal)


class AsyncSnapshots(_Noun):
    list = aio(service.Snapshots.list)
    get = aio(service.Snapshots.get)
    delete = aio(service.Snapshots.delete)


class AsyncCapabilities(_Noun):
    list = aio(service.Capabilities.list)
    call = aio(service.Capabilities.call)


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


class AsyncMachine(_Noun):
    version = aio(service.Machine.version)
    backends = aio(service.Machine.backends)
    stats = aio(service.Machine.stats)


class AsyncClient:
    """A Client for asyncio: the same nouns, their methods as coroutines."""

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        self._client = Client(url, api_key=api_key)
        self.sandboxes = AsyncSandboxes(self._client.sandboxes)
        self.commands = AsyncCommands(self._client.commands)
        self.snapshots = AsyncSnapshots(self._client.snapshots)
        self.capabilities = AsyncCapabilities(self._client.capabilities)
        self.receipts = AsyncReceipts(self._client.receipts)
        self.keys = AsyncKeys(self._client.keys)
        self.approvals = AsyncApprovals(self._client.approvals)
        self.audit = AsyncAudit(self._client.audit)
        self.machine = AsyncMachine(self._client.machine)

    @property
    def url(self) -> str:
        """The daemon's address."""
        return self._client.url

    async def close(self) -> None:
        """Close its connections; idempotent."""
        self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.url}>"
