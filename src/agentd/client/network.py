"""What a sandbox may reach, for whoever holds it."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from agentd.client import arguments, cassettes, wording

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

    def cassette(self) -> bytes:
        """Return the cassette of what it asked and was answered until now; ``net`` of ``create``
        begins with ``record`` or ``record:FILE``. Raises Refused."""
        with wording.spoken():
            return self._service.cassette(self._sandbox)

    def play(self, cassette: bytes | str | os.PathLike[str]) -> None:
        """Answer what it asks from this cassette, its bytes or its path, from the beginning.

        ``net`` of ``create`` begins with ``replay``, or has ``replay:FILE``, which does this by
        itself. Raises InvalidInput, Refused.
        """
        with wording.spoken():
            data = cassette if isinstance(cassette, bytes) else cassettes.read(cassette)
            self._service.play(self._sandbox, data)

    def connections(self, after: int = 0) -> "network.ConnectionPage":
        """Return what it connected to and what it was refused, a thousand at most; after the
        ``next`` of an earlier answer only what has changed since."""
        arguments.whole(after, "after", 0, arguments.MOST)
        with wording.spoken():
            return self._service.connections(self._sandbox, after)
