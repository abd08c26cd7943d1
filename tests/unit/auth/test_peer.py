import pytest

from agentd.auth.chain import PeerProvider, PeerRule, rules_of
from agentd.model.credential import Credential
from agentd.model.errors import Forbidden

RUN = PeerRule(frozenset({"run"}))
NAMED = PeerRule(frozenset({"admin"}), "me")


def test_a_uid_has_its_rule_and_the_others_theirs():
    provider = PeerProvider({1000: NAMED, "*": RUN})
    me = provider.authenticate(Credential(peer_uid=1000))
    other = provider.authenticate(Credential(peer_uid=1001))
    assert (me.name, me.scopes, me.via) == ("me", {"admin"}, "peer")
    assert (other.name, other.scopes, other.credential) == ("uid:1001", {"run"}, "uid:1001")
    assert provider.authenticate(Credential(api_key="x")) is None


def test_a_uid_without_a_rule_is_told_which_to_add():
    with pytest.raises(Forbidden, match=r"uid 1001 is not let in .*uid = 1001"):
        PeerProvider({1000: NAMED}).authenticate(Credential(peer_uid=1001))


@pytest.mark.parametrize("uid", [65534, -1])
def test_users_without_a_number_here_are_not_all_one_principal(uid):
    with pytest.raises(Forbidden):
        PeerProvider({"*": RUN}).authenticate(Credential(peer_uid=uid))


def test_a_sandbox_with_our_own_uid_is_not_us():
    credential = Credential(peer_uid=1000, peer_pid=7, foreign=True)
    with pytest.raises(Forbidden, match="process 7 is in a container or a sandbox"):
        PeerProvider({1000: NAMED}).authenticate(credential)
    assert PeerProvider({1000: NAMED}, containers=True).authenticate(credential).name == "me"


def test_the_first_rule_for_a_uid_holds():
    assert rules_of([(1, NAMED), (1, RUN), ("*", RUN)]) == {1: NAMED, "*": RUN}
