"""What a sandbox may reach, for whoever holds it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from agentd.client import wording

if TYPE_CHECKING:
    from agentd.model import network


class NetworkControl:
    """The network of one sandbox: which rules hold, others from now on, and what it did."""

    def __init__(self, service: "network.Network", sandbox: str) -> None:
        self._service = service
        self._sandbox = sandbox

    def get(self) -> "network.NetworkView":
        """Return what it may reach: ``egress`` as it was written, ``rules`` spelled out."""
        return self._service.get(self._sandbox)

    def set(self, net: str | Iterable[str]) -> "network.NetworkView":
        """Let these rules hold from now on; open connections that they do not allow end.

        As ``net`` of ``create``: ["pypi", "api.example.com"], or [] for nothing. The sandbox must
        have been made with rules. Raises InvalidInput, Refused.
        """
        with wording.spoken():
            return self._service.set(self._sandbox, net)

    def connections(self, after: int = 0) -> "network.ConnectionPage":
        """Return what it connected to and what it was refused, a thousand at most; after the
        ``next`` of an earlier answer only what has changed since."""
        with wording.spoken():
            return self._service.connections(self._sandbox, after)
