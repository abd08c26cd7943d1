"""Who is let in: the chain of the configuration, and how fast they may come."""

import socket

from agentd.auth.chain import ProviderChain
from agentd.auth.keys import KeyStore
from agentd.auth.peer import peer_of
from agentd.daemon.config.schema import Config
from agentd.daemon.service.quotas import Ledger
from agentd.model.credential import Credential
from agentd.model.principal import Principal
from agentd.serve import authentication


class Caller(Principal, frozen=True):
    """A principal that proved who they are. Nothing but the gatekeeper makes one."""


class Gatekeeper:
    """``model.gatekeeper.Gatekeeper`` over the daemon's keys and quotas."""

    def __init__(self, config: Config, keys: KeyStore, ledger: Ledger) -> None:
        """Raises InvalidInput for what is configured and cannot be had."""
        self._keys = keys
        self._ledger = ledger
        self._chain = self.chain(config)

    def chain(self, config: Config) -> ProviderChain:
        """What ``take`` takes. Raises InvalidInput."""
        return authentication.chain(config, self._keys)

    def take(self, chain: ProviderChain) -> None:
        """Judge by it from now on."""
        self._chain = chain

    def peer(self, connection: socket.socket) -> Credential:
        peer = peer_of(connection)
        return Credential(peer_uid=peer.uid, peer_pid=peer.pid, foreign=peer.foreign)

    def authenticate(self, credential: Credential) -> Caller:
        who = self._chain.authenticate(credential)
        self._ledger.request(who.name)
        return Caller(who.name, who.scopes, who.via, who.credential)
