"""One document for every policy, whatever way the request came; no variable's value in it."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.daemon.known import act, handle_of

from agentd.daemon.admission.acts import Place, asked
from agentd.model.capability import Needs
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec

NOW = 1_764_000_000.0


def test_the_document_has_who_what_where_and_when():
    spec = SandboxSpec(
        net="host",
        user="root",
        env={"B": "2", "A": "1"},
        mounts=(Mount("/data", "/in", MountMode.RO),),
        limits=Limits(memory=1024),
    )
    needs = Needs(IsolationLevel.NAMESPACE, network=True, writes=True)
    known = asked(
        act(
            "text.count.v1",
            parameters={"text": "x"},
            place=Place.of(handle_of(spec), {"team": "red"}),
            needs=needs,
            signer="key-9",
            via="http",
        ),
        NOW,
    )
    found = msgspec.to_builtins(known)
    assert found["principal"] == {
        "name": "alice",
        "scopes": ["create", "files", "read", "run"],
        "via": "key",
    }
    assert found["capability"] == {
        "name": "text.count.v1",
        "needs": {"level": "namespace", "network": True, "writes": True, "sandbox": True},
    }
    assert found["parameters"] == {"text": "x"}
    assert found["request"] == {"id": "req-1", "time": NOW, "signer": "key-9", "via": "http"}
    sandbox = found["sandbox"]
    assert (sandbox["id"], sandbox["level"], sandbox["backend"]) == ("sbx-1", "namespace", "linux")
    assert (sandbox["net"], sandbox["user"], sandbox["env"]) == ("host", "root", ["A", "B"])
    assert sandbox["mounts"] == [{"source": "/data", "target": "/in", "mode": "ro"}]
    assert sandbox["limits"]["memory"] == 1024
    assert sandbox["labels"] == {"team": "red"}


def test_of_a_sandbox_that_is_yet_to_be_made_it_has_the_least_that_is_asked_for():
    spec = SandboxSpec(isolation=IsolationLevel.PROCESS)
    sandbox = asked(act(place=Place.new(spec)), NOW).sandbox
    assert (sandbox["id"], sandbox["level"], sandbox["backend"]) == ("", "process", "")


# No word of the document: hypothesis draws the own words of the code, too ("principal").
values = st.text(min_size=8).map("value: {}".format)


@given(values, values)
def test_a_variables_value_is_nowhere_in_it(ours, theirs):
    place = Place.new(SandboxSpec(env={"OURS": ours}))
    known = asked(act(parameters={"command": "x", "env": {"THEIRS": theirs}}, place=place), NOW)
    assert known.parameters == {"command": "x", "env": ["THEIRS"]}
    assert known.sandbox["env"] == ["OURS"]
    text = repr(msgspec.to_builtins(known))
    assert repr(ours)[1:-1] not in text and repr(theirs)[1:-1] not in text


def test_an_env_that_is_no_mapping_is_left_as_it_is():
    assert asked(act(parameters={"env": "production"}), NOW).parameters == {"env": "production"}
