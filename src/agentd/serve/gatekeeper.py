"""Who is let in: the chain of the configuration, and how fast they may come."""

import socket

from agentd.auth.chain import Anyone, AuthProvider, PeerProvider, PeerRule, ProviderChain, rules_of
from agentd.auth.jwks import KeySet, UrlKeySet
from agentd.auth.jwt import Issuer, JwtProvider, key_set
from agentd.auth.keys import KeyProvider, KeyStore
from agentd.auth.mtls import CertificateRule, MtlsProvider
from agentd.daemon.app import Daemon
from agentd.daemon.config.schema import Auth, Config, JwtIssuer
from agentd.daemon.observe.observed import observed
from agentd.daemon.service.service import DaemonService
from agentd.linux.peer import peer_of
from agentd.model.credential import Credential
from agentd.model.principal import Principal
from agentd.model.typed import like


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
        return chain_of(config, self._daemon.keys, self._fetched)

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


def chain_of(
    config: Config, store: KeyStore, fetched: dict[str, KeySet] | None = None
) -> ProviderChain:
    """Put the chain of a configuration together. ``fetched``: by their URLs, keys that the chain
    before had; what this one fetches is added. Raises InvalidInput, where a package is missing that
    the configuration needs, too."""
    auth = config.auth
    presented: list[AuthProvider] = []
    if auth.keys.enabled:
        presented.append(KeyProvider(store))
    if auth.jwt:
        presented.append(
            JwtProvider(
                [(_issuer(i), _keys(i, {} if fetched is None else fetched)) for i in auth.jwt]
            )
        )
    ambient: list[AuthProvider] = []
    if auth.certificates:
        ambient.append(MtlsProvider(_certificates(auth)))
    ambient.append(_peers(auth))
    if config.daemon.insecure:
        ambient.append(Anyone())
    return ProviderChain(presented, ambient)


def _peers(auth: Auth) -> PeerProvider:
    rules = rules_of(
        (peer.uid.resolve(), PeerRule(frozenset(peer.scopes), _name(peer.principal)))
        for peer in auth.peers
    )
    return PeerProvider(rules, containers=auth.containers)


def _name(name: str | None) -> str | None:
    """Return a plain text: what a principal is called is encoded, for policies and for records."""
    return None if name is None else str(name)


def _certificates(auth: Auth) -> list[CertificateRule]:
    return [
        CertificateRule(rule.match, str(rule.principal), frozenset(rule.scopes))
        for rule in auth.certificates
    ]


def _issuer(issuer: JwtIssuer) -> Issuer:
    grants = {value: frozenset(scopes) for value, scopes in issuer.grants.items()}
    scopes = frozenset(issuer.scopes)
    return like(Issuer, issuer, name=str(issuer.name), scopes=scopes, grants=grants)


def _keys(issuer: JwtIssuer, fetched: dict[str, KeySet]) -> KeySet:
    """Return its keys. Those of a URL are had from the chain before, and fetched anew: an issuer
    that cannot be reached just then lets in whom it did, as without a reload."""
    made, url = key_set(issuer.jwks_file, issuer.jwks_url), issuer.jwks_url
    if url is None:
        return made
    found = fetched.setdefault(url, made)
    if found is not made and isinstance(found, UrlKeySet):
        found.doubt()
    return found
