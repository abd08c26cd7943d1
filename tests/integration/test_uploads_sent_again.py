"""An upload that is sent again with its Idempotency-Key, by a client that sends all of it first."""

from tests.security.daemons import running

DATA = b"x" * (8 << 20)


def test_a_large_one_gets_its_recorded_answer_though_nobody_needs_its_bytes() -> None:
    with running() as daemon:
        path = f"/v1/sandboxes/{daemon.sandbox()}/files?path=/workspace/large"
        for replayed in (None, "true", "true"):
            answer = daemon.ask(
                "PUT",
                path,
                DATA,
                Content_Type="application/octet-stream",
                Idempotency_Key="upload-1",
            )
            assert (answer.status, answer.json) == (200, {"size": len(DATA)})
            assert answer.headers.get("idempotency-replayed") == replayed
