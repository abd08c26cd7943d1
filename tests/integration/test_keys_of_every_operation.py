"""An Idempotency-Key has one meaning at every operation: done once, no difference, or refused."""

import io
import tarfile
from collections.abc import Iterator

import pytest
from tests.security.daemons import Daemon, running


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running() as made:
        yield made


def tar() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        folder = tarfile.TarInfo("tree")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        info = tarfile.TarInfo("tree/file")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"in"))
    return made.getvalue()


def test_what_changes_files_is_done_once(daemon: Daemon) -> None:
    files = f"/v1/sandboxes/{daemon.sandbox()}/files"
    daemon.ask("PUT", f"{files}?path=/workspace/a", b"a")
    asked = [
        ("POST", f"{files}/mkdir", {"path": "/workspace/d"}),
        ("POST", f"{files}/move", {"path": "/workspace/a", "to": "/workspace/b"}),
        ("PUT", f"{files}/tar?path=/workspace/tree&whole=true", tar()),
        ("DELETE", f"{files}?path=/workspace/b", None),
    ]
    for number, (method, path, body) in enumerate(asked):
        headers = {"Idempotency_Key": f"once-{number}"}
        first = daemon.ask(method, path, body, **headers)
        again = daemon.ask(method, path, body, **headers)
        assert (first.status, again.status) == (204, 204), (path, first.body, again.body)
        assert again.headers["idempotency-replayed"] == "true"
        assert "idempotency-replayed" not in first.headers
        # It is the key: without one it is done again, and that is refused.
        assert daemon.ask(method, path, body).status >= 400, path
        other = daemon.ask("POST", f"{files}/mkdir", {"path": "/workspace/e"}, **headers)
        assert other.status == 422, other.body


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1])
def test_another_upload_of_no_told_length_is_not_taken_for_the_first(
    daemon: Daemon, size: int
) -> None:
    path = f"/v1/sandboxes/{daemon.sandbox()}/files?path=/workspace/a"
    headers = {"Idempotency_Key": f"chunked-{size}", "Transfer_Encoding": "chunked"}
    first, again, other = (
        daemon.ask("PUT", path, chunked(letter * size), **headers) for letter in (b"a", b"a", b"b")
    )
    assert (first.status, first.json) == (200, {"size": size}), first.body
    assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")
    assert other.status == 422, other.body
    assert daemon.ask("GET", path).body == b"a" * size


def test_what_may_be_repeated_takes_no_notice(daemon: Daemon) -> None:
    box = f"/v1/sandboxes/{daemon.sandbox()}"
    asked = [
        ("POST", f"{box}/renew", {"ttl": 60}),
        ("PATCH", box, {"labels": {"a": "b"}}),
        ("GET", box, None),
    ]
    for method, path, body in asked:
        for _ in range(2):
            answer = daemon.ask(method, path, body, Idempotency_Key="same")
            assert answer.status == 200, answer.body
            assert "idempotency-replayed" not in answer.headers


def test_what_could_be_done_twice_refuses_one(daemon: Daemon) -> None:
    box = f"/v1/sandboxes/{daemon.sandbox()}"
    started = {"cmd": "cat", "wait": False, "stdin_open": True}
    process = daemon.ask("POST", f"{box}/exec", started).json["id"]
    before = len(daemon.ask("GET", "/v1/keys").json)
    for path, body in (
        ("/v1/call/stream", {"capability": "fs.list.v1", "parameters": {"path": "/"}}),
        (f"{box}/snapshot", None),
        (f"{box}/fork", {"count": 1}),
        (f"{box}/commit", {"name": "mine"}),
        (f"{box}/processes/{process}/stdin", b"a"),
        (f"{box}/processes/{process}/signal", {"signal": 15}),
        ("/v1/keys", {"name": "n", "scopes": ["read"]}),
    ):
        answer = daemon.ask("POST", path, body, Idempotency_Key="k")
        assert (answer.status, answer.code) == (400, "invalid_input"), (path, answer.body)
        assert "takes no Idempotency-Key" in answer.json["message"]
        assert answer.json["remediation"].startswith("leave it out")
    assert len(daemon.ask("GET", "/v1/keys").json) == before
    assert daemon.ask("GET", f"{box}/processes/{process}").json["state"] == "running"
