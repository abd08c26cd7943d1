"""Who is let in: the chain of the configuration, and how fast they may come."""

import socket
from typing import TYPE_CHECKING

from agentd.auth.chain import ProviderChain
from agentd.daemon.app import Daemon
from agentd.daemon.config.schema import Config
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.service import DaemonService
from agentd.linux.peer import peer_of
from agentd.model.credential import Credential
from agentd.model.principal import Principal
from agentd.serve import authentication

if TYPE_CHECKING:
    from agentd.auth.jwks import KeySet


class Gatekeeper:
    """``model.gatekeeper.Gatekeeper`` over a daemon, its keys and quotas."""

    _who = None  # it is what is found out

    def __init__(self, config: Config, daemon: Daemon) -> None:
        """Raises InvalidInput for what is configured and cannot be had."""
        self._daemon = daemon
        self._observer = daemon.observer
        self._fetched: dict[str, KeySet] = {}  # keys of issuers, which outlast a reload
        self._chain = self.chain(config)

    def chain(self, config: Config) -> ProviderChain:
        """Return the chain that ``take`` takes. Raises InvalidInput."""
        return authentication.chain(config, self._daemon.keys, self._fetched)

    def take(self, chain: ProviderChain) -> None:
        """Judge by it from now on."""
        self._chain = chain

    def peer(self, connection: socket.socket) -> Credential:
        peer = peer_of(connection)
        return Credential(peer_uid=peer.uid, peer_pid=peer.pid, foreign=peer.foreign)

    @observed("authenticate")
    def authenticate(self, credential: Credential) -> DaemonService:
        who = self._chain.authenticate(credential)
        self._daemon.ledger.request(who.name)
        return self._daemon.of(who, lambda: self._chain.authenticate(credential))

    @observed("follow_link")
    def follow(self, token: str, sandbox: str, port: int) -> DaemonService:
        def again() -> Principal:
            return self._daemon.links.maker(token, sandbox, port)()

        who = again()
        self._daemon.ledger.request(who.name)
        return self._daemon.of(who, again)  # a stream ends with the link, as with its maker's key
