"""The SDK's client of a daemon: what a caller may ask beside the sandboxes that it holds."""

from typing import TYPE_CHECKING, Self

from agentd.client import wording
from agentd.client.http import address
from agentd.client.http.service import alone
from agentd.model import service

if TYPE_CHECKING:
    from agentd.client.ports import Service


class Client:
    """A daemon, by nouns: list and find sandboxes, look at commands, receipts, keys, the audit log.

    ``url`` (else AGENTD_URL, else a daemon at its usual place) is unix:PATH or https://HOST:PORT;
    ``api_key`` (else AGENTD_API_KEY) says who asks. Thread-safe. ``close`` it, or use it in a with
    statement. Raises Unreachable where there is no daemon; its methods raise that too, and what
    the daemon says: Forbidden, NotFound, ...
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        with wording.spoken():
            self._service: Service = alone(address.find(url, api_key))

    @property
    def url(self) -> str:
        """Return the daemon's address."""
        return str(self._service.url)

    @property
    def sandboxes(self) -> service.Sandboxes:
        """Sandboxes: create, get_or_create, list, get, relabel, renew, pause, resume, kill,
        snapshot, fork, commit, changes, apply."""
        return self._service.sandboxes

    @property
    def commands(self) -> service.Commands:
        """Commands of a sandbox: exec, start, run, list, get, output, follow, write, signal,
        resize."""
        return self._service.commands

    @property
    def files(self) -> service.Files:
        """Files of a sandbox: read, write, list, stat, mkdir, move, remove, watch, and as tar."""
        return self._service.files

    @property
    def ports(self) -> service.Ports:
        """Ports of a sandbox: open, for plain bytes both ways, and link, for a browser."""
        return self._service.ports

    @property
    def network(self) -> service.Network:
        """What a sandbox may reach, and did: get, set, connections."""
        return self._service.network

    @property
    def snapshots(self) -> service.Snapshots:
        """Snapshots: list, get, export, delete."""
        return self._service.snapshots

    @property
    def volumes(self) -> service.Volumes:
        """Volumes, which outlive sandboxes: create, list, get, snapshot, delete."""
        return self._service.volumes

    @property
    def secrets(self) -> service.Secrets:
        """Secrets that the daemon keeps, for sandboxes that use them: set, list, delete."""
        return self._service.secrets

    @property
    def capabilities(self) -> service.Capabilities:
        """Capabilities: list, call, and request for one that is signed."""
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
    def events(self) -> service.Events:
        """What happens to one's sandboxes: read."""
        return self._service.events

    @property
    def machine(self) -> service.Machine:
        """The daemon itself: version, backends, stats."""
        return self._service.machine

    def close(self) -> None:
        """Close its connections; idempotent."""
        self._service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.url}>"
