"""Doors that share a listener: whose a path is, and which claims exclude each other."""

import asyncio
import http.client
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ingest.fake import FakeDaemon, until
from tests.unit.ingest.fake_nouns import FakeSandboxes
from tests.unit.ingest.harness import Running

from agentd.ingest.web.door import Door, Mount
from agentd.ingest.web.routes import Doors
from agentd.ingest.web.web import Web
from agentd.model.answer import Answer
from agentd.model.errors import AgentdError, InvalidInput


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("it is not asked")


def mount(*paths: str) -> Mount:
    return Mount(Door(Web(), FakeDaemon()), _nothing, paths)


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


class Plain(Door):
    def error(self, error: AgentdError) -> Answer:
        return Answer(418, f"plainly: {error.message}".encode())


async def _breaks(scope: Any, receive: Any, send: Any) -> None:
    """An application that is no ``Routes``, and leaves its errors to whoever asks it."""
    if scope["path"] == "/plain/waits":
        await asyncio.sleep(600)
    if scope["path"] == "/plain/late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
    raise ZeroDivisionError("it is broken")


def _plain(web: Web, service: FakeDaemon) -> dict[str, Mount]:
    return {"plain": Mount(Plain(web, service), _breaks, ("/plain",), always=("/plain/always",))}


def test_what_breaks_in_any_application_is_told_in_its_doors_form(tmp_path: Path) -> None:
    with Running(tmp_path, doors=_plain) as running:
        broken = running.ask("GET", "/plain/now")
        assert broken.status == 418, broken.body
        assert broken.body == b"plainly: the daemon failed to answer this"
        assert broken.headers["x-request-id"].startswith("req-")
        late = running.say(b"GET /plain/late HTTP/1.1\r\nHost: x\r\n\r\n")
        assert late.startswith(b"HTTP/1.1 200") and b"so far" in late
        assert not late.endswith(b"0\r\n\r\n"), "it is not taken for whole"


def test_each_door_refuses_in_its_form_while_agentd_drains(tmp_path: Path) -> None:
    with Running(tmp_path, doors=_plain) as running, running.raw() as client:
        client.sendall(b"GET /plain/now HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"failed to answer" in client.recv(4096)
        running.loop.call_soon_threadsafe(running.server._web.drain)
        refused = running.ask("GET", "/plain/now")
        assert (refused.status, refused.body) == (418, b"plainly: the daemon is about to end")
        assert running.ask("GET", "/v1/version").code == "draining"
        assert b"failed to answer" in running.ask("GET", "/plain/always").body
        assert running.ask("GET", "/healthz").status == 200


def test_at_the_end_of_a_drain_who_does_not_ask_again_by_itself_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, told = threading.Event(), dict[str, int]()
    for name in ("create", "kill"):
        monkeypatch.setattr(FakeSandboxes, name, lambda *_: go.wait(120))
    with Running(tmp_path, doors=_plain) as running:
        asked = {
            "plain": ("POST", "/plain/waits", None, {}),
            "made": ("POST", "/v1/sandboxes", {}, {}),
            "made once": ("POST", "/v1/sandboxes", {}, {"Idempotency-Key": "k"}),
            "ended": ("DELETE", "/v1/sandboxes/sbx-1", None, {}),
        }

        def ask(name: str) -> None:
            try:
                told[name] = running.ask(*asked[name]).status
            except (ConnectionError, http.client.HTTPException):
                told[name] = 0  # it is cut off

        threads = [threading.Thread(target=ask, args=(name,)) for name in asked]
        try:
            for thread in threads:
                thread.start()
            until(lambda: len(running.server._state.tasks) == len(asked))
            running.begin_to_end(drain=0.1)
            for thread in threads:
                thread.join(120)
        finally:
            go.set()
    assert told == {"plain": 418, "made": 503, "made once": 0, "ended": 0}
