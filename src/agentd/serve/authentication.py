"""From the configuration to the chain that authenticates every request."""

from agentd.auth.chain import Anyone, AuthProvider, PeerProvider, PeerRule, ProviderChain, rules_of
from agentd.auth.jwks import KeySet, UrlKeySet
from agentd.auth.jwt import Issuer, JwtProvider, key_set
from agentd.auth.keys import KeyProvider, KeyStore
from agentd.auth.mtls import CertificateRule, MtlsProvider
from agentd.daemon.config.schema import Auth, Config, JwtIssuer
from agentd.model.typed import like


def chain(
    config: Config, store: KeyStore, fetched: dict[str, KeySet] | None = None
) -> ProviderChain:
    """Put it together. ``fetched``: by their URLs, keys that the chain before had; what this one
    fetches is added. Raises InvalidInput, where a package is missing that the configuration needs,
    too."""
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
