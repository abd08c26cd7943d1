"""Of which kind a container must be to serve a request."""

import contextlib
import threading
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from agentd.model.limits import Limits
from agentd.model.mount import Mount, MountMode
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.linux import spares
from agentd.sandbox.backends.linux.plan import make_plan
from agentd.sandbox.backends.linux.spares import ImageFiles
from agentd.sandbox.backends.oci import ahead

LAUNCHER: Any = SimpleNamespace(own_users=False, ids=SimpleNamespace(blocks=2048))


def kind(*, files: ImageFiles | None = None, program: str = "/bin/runc", **fields: Any) -> Any:
    return ahead.kind_of(make_plan(SandboxSpec(**fields)), files, program, LAUNCHER)


def test_variables_and_rules_are_left_to_the_request() -> None:
    assert kind(env={"KEY": "of-a-caller"}) == kind(env={})
    assert b"of-a-caller" not in kind(env={"KEY": "of-a-caller"}).settled
    some, others = ("a.example.com",), ("b.example.com", "c.example.com:5432")
    assert kind(net="restricted", egress=some) == kind(net="restricted", egress=others)


@pytest.mark.parametrize(
    "fields",
    [
        {"net": "host"},
        {"net": "restricted"},
        {"user": "77"},
        {"hostname": "other"},
        {"image": "mine"},
        {"writable": True},
        {"program": "/bin/crun"},
        {"files": ImageFiles("sha256:1", 1, 1)},
        *({"limits": Limits(**{name: 1 << 26})} for name in ("memory", "disk", "pids")),
    ],
)
def test_what_is_settled_at_the_start_is_of_the_kind(fields: dict[str, Any]) -> None:
    assert kind(**fields) is not None
    assert kind(**fields) != kind()


def test_one_whose_connections_are_read_has_a_container_of_its_own() -> None:
    """Whom its programs trust is made for it, and is in its root."""
    assert kind(net="restricted", egress=("read a.example.com",)) is None
    assert kind(secrets=("one",)) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"mounts": (Mount("/tmp", "/mnt", MountMode.RO),)},
        {"cow": True},
        {"bare": True},
    ],
)
def test_one_with_something_of_its_own_in_its_root_is_not_started_ahead(
    fields: dict[str, Any],
) -> None:
    plan = msgspec.structs.replace(make_plan(SandboxSpec()), **fields)
    assert ahead.kind_of(plan, None, "/bin/runc", LAUNCHER) is None


def test_where_ids_are_few_none_is_started_ahead() -> None:
    few: Any = SimpleNamespace(own_users=True, ids=SimpleNamespace(blocks=63))
    assert ahead.kind_of(make_plan(SandboxSpec()), None, "/bin/runc", few) is None


def test_one_that_another_launcher_started_is_ended_and_not_taken() -> None:
    """As where the launcher has died, and another has followed."""
    kept, ended = threading.Event(), threading.Event()
    undo = contextlib.ExitStack()
    undo.callback(ended.set)
    none: Any = None
    begun = ahead.Begun(LAUNCHER, none, none, None, None, "", undo)

    def another() -> None:
        kept.set()  # one is started after the other

    first, second = kind(), kind(user="77")
    containers = ahead.ContainersAhead()
    for _ in range(spares.OFTEN):
        containers.want(first, lambda: begun)
    for _ in range(spares.OFTEN):
        containers.want(second, another)
    assert kept.wait(60)
    other: Any = SimpleNamespace(own_users=False, ids=SimpleNamespace(blocks=2048))
    assert containers.take(first, other) is None
    assert ended.wait(60)
    assert containers.take(first, LAUNCHER) is None
    assert containers.close() == []
