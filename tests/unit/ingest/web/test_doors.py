"""Doors that share a listener: whose a path is, and which claims exclude each other."""

from typing import Any

import pytest
from tests.unit.ingest.fake import FakeService

from agentd.ingest.web.door import Door, Mount
from agentd.ingest.web.doors import Doors
from agentd.ingest.web.web import Web
from agentd.model.errors import InvalidInput


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("it is not asked")


def mount(*paths: str) -> Mount:
    return Mount(Door(Web(), FakeService()), _nothing, paths)


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ("/v1", "/v1", "/v1"),
        ("/v1", "/v1/hooks", "/v1/hooks"),
        ("/v1/hooks", "/v1/", "/v1/hooks"),
        ("/", "/hooks", "/hooks"),
        ("/", "/", "/"),
    ],
)
def test_two_doors_that_claim_a_path_are_refused_by_their_names(
    one: str, other: str, path: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        Doors(Web(), {"a": mount(one), "b": mount(other)})
    assert str(caught.value) == (
        f"the doors 'a' and 'b' both answer {path} on one listener "
        "(serve them on a [[listen]] of their own each)"
    )


def test_each_path_is_answered_by_the_door_that_claims_it() -> None:
    first, second = mount("/v1", "/healthz"), mount("/hooks", "/v1beta")
    doors = Doors(Web(), {"a": first, "b": second})
    for path in ("/v1", "/v1/sandboxes", "/healthz", "/", "/other", "/hooksy", "/v1alpha"):
        assert doors._mount(path) is first, path
    for path in ("/hooks", "/hooks/", "/hooks/x", "/v1beta/y"):
        assert doors._mount(path) is second, path
