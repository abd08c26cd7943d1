import pytest

from agentd.auth.chain import Anyone, PeerProvider, PeerRule, ProviderChain
from agentd.model.credential import Credential
from agentd.model.errors import Unauthenticated
from agentd.model.principal import Principal

ADMIN = PeerProvider({1000: PeerRule(frozenset({"admin"}), "me")})


class Token:
    """Knows one token; another of its kind is refused, anything else is not its own."""

    def __init__(self, good: str) -> None:
        self._good = good

    def authenticate(self, credential: Credential) -> Principal | None:
        if credential.authorization == self._good:
            return Principal("ci", frozenset({"read"}), "key")
        if (credential.authorization or "").startswith(self._good[:3]):
            raise Unauthenticated("not valid")
        return None


def test_what_is_presented_stands_above_who_connects():
    chain = ProviderChain([Token("tok-1")], [ADMIN])
    assert chain.authenticate(Credential(peer_uid=1000)).name == "me"
    assert chain.authenticate(Credential(peer_uid=1000, authorization="tok-1")).name == "ci"


@pytest.mark.parametrize("header", ["tok-2", "Basic YTpi", "", "Bearer"])
def test_a_presented_credential_that_fails_never_falls_back_to_the_peers_wider_scopes(header):
    chain = ProviderChain([Token("tok-1")], [ADMIN])
    with pytest.raises(Unauthenticated):
        chain.authenticate(Credential(peer_uid=1000, authorization=header))


def test_two_credentials_are_one_too_many():
    chain = ProviderChain([Token("tok-1")], [ADMIN])
    with pytest.raises(Unauthenticated, match="two credentials"):
        chain.authenticate(Credential(authorization="tok-1", api_key="agd_x"))


def test_without_any_the_request_is_refused_with_a_way_out():
    with pytest.raises(Unauthenticated, match="no credential") as caught:
        ProviderChain([], [ADMIN]).authenticate(Credential())
    assert "API key" in caught.value.remediation


def test_anyone_is_no_admin_and_a_bad_token_is_still_refused():
    chain = ProviderChain([Token("tok-1")], [ADMIN, Anyone()])
    who = chain.authenticate(Credential())
    assert who.may("run") and not any(who.may(s) for s in ("admin", "keys", "approve"))
    with pytest.raises(Unauthenticated):
        chain.authenticate(Credential(authorization="tok-2"))
    assert Anyone().authenticate(Credential(peer_uid=4)) is None
