import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.model.errors import Forbidden, Refused, Unauthenticated
from agentd.model.principal import SCOPES, Principal, local

scopes = st.sets(st.sampled_from(sorted(SCOPES))).map(frozenset)


@given(scopes, st.sampled_from(sorted(SCOPES)))
def test_a_principal_may_what_it_has_and_an_admin_may_all(held, asked):
    who = Principal("ci", held, "key")
    assert who.may(asked) is (asked in held or "admin" in held)


def test_a_lacking_scope_is_named():
    who = Principal("ci", frozenset({"run", "files"}), "key")
    who.require("run")
    with pytest.raises(Forbidden, match=r"ci lacks the scope 'create': it has files, run"):
        who.require("create")
    assert Forbidden.code == "forbidden" and issubclass(Forbidden, Refused)
    assert Unauthenticated.code == "unauthenticated" and not issubclass(Unauthenticated, Refused)


def test_others_things_are_an_admins_alone():
    assert Principal("ci", frozenset({"run"}), "key").owns("ci")
    assert not Principal("ci", frozenset(SCOPES) - {"admin"}, "key").owns("ci2")
    assert Principal("ops", frozenset({"admin"}), "mtls").owns("ci")
    assert local("me").may("keys") and local("me").via == "local"
