"""A daemon's sandbox: what is asked, and what is made of the answers."""

import asyncio
import os
import re
import threading

import msgspec
import pytest

from agentd import AsyncSandbox, Sandbox
from agentd.client.http import client as clients
from agentd.model.errors import InvalidInput, NotFound, SandboxError
from agentd.model.spec import ExecRequest

VIEW = {
    "id": "sbx-a",
    "state": "ready",
    "backend": "qemu",
    "level": "microvm",
    "image": "default",
    "labels": {"k": "v"},
    "principal": "uid:0",
    "created": 1.0,
    "deadline": 61.0,
    "workspace": "/workspace",
    "enforcement": {"network": {"asked": "none", "enforced": True, "detail": ""}},
}
SNAPSHOT = {"id": "snp-1", "sandbox": "sbx-a", "fidelity": "memory", "created": 2.0, "bytes": 9}
GONE = (404, {}, b'{"code": "not_found", "message": "there is no such thing"}')
NOTHING = (204, {}, b"")


def encoded(value, status=200):
    return status, {}, msgspec.json.encode(value)


@pytest.fixture
def url(daemon, monkeypatch):
    monkeypatch.setattr(clients, "DELAYS", (0.0, 0.0))
    return f"unix:{daemon.server_address}"


@pytest.fixture
def sandbox(daemon, url):
    daemon.answers = [encoded(VIEW, 201)]
    made = Sandbox.create(url=url, labels={"k": "v"}, ttl="1m", isolation="microvm")
    yield made
    daemon.answers = [NOTHING]
    made.close()
    assert clients._shared == {}


def asked(daemon, at=-1):
    request = daemon.requests[at]
    body = msgspec.json.decode(request.body) if request.body else None
    return request.method, request.path, body


def test_it_is_what_the_daemon_says(daemon, sandbox):
    assert asked(daemon) == (
        "POST",
        "/v1/sandboxes",
        {"isolation": "microvm", "labels": {"k": "v"}, "ttl": "1m"},
    )
    assert daemon.requests[0].headers["Idempotency-Key"]
    assert (sandbox.id, sandbox.labels, sandbox.info.level) == ("sbx-a", {"k": "v"}, "microvm")
    assert sandbox.enforcement["network"].enforced
    assert repr(sandbox) == "<Sandbox sbx-a qemu ready>"


def test_a_name_and_a_wait_go_along(daemon, url):
    daemon.answers = [encoded(VIEW | {"name": "build"}, 201)]
    with Sandbox.create(url=url, name="build", wait="60s") as made:
        assert asked(daemon) == ("POST", "/v1/sandboxes", {"name": "build", "wait": "60s"})
        assert made.name == "build"
        daemon.answers = [NOTHING]


def test_a_lost_answer_does_not_make_two(daemon, url, drop):
    daemon.answers = [drop, encoded(VIEW, 201)]
    made = Sandbox.create(url=url)
    first, second = daemon.requests
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]
    daemon.answers = [GONE]  # the lease has ended it meanwhile
    made.close()
    made.kill()
    assert len(daemon.requests) == 3
    with pytest.raises(SandboxError, match="sandbox sbx-a is ended"):
        made.ping()


def test_standing_still(daemon, sandbox):
    daemon.answers = [encoded(VIEW | {"state": "paused"})]
    sandbox.pause()
    assert asked(daemon) == ("POST", "/v1/sandboxes/sbx-a/pause", None)
    assert "paused" in repr(sandbox)
    daemon.answers = [encoded(VIEW)]
    sandbox.resume()
    assert asked(daemon)[1].endswith("/resume")


def test_a_lease_is_renewed(daemon, sandbox):
    daemon.answers = [encoded(VIEW)]
    sandbox.renew("10m")
    assert asked(daemon) == ("POST", "/v1/sandboxes/sbx-a/renew", {"ttl": "10m"})


def test_snapshots_are_the_daemons(daemon, sandbox, url):
    daemon.answers = [encoded(SNAPSHOT, 201)]
    with pytest.raises(InvalidInput, match="keeps its snapshots itself"):
        sandbox.snapshot("/a/path")
    with sandbox.snapshot() as taken:
        assert (taken.id, taken.fidelity, taken.size) == ("snp-1", "memory", 9)
        daemon.answers = [encoded(VIEW | {"id": "sbx-b"}, 201)]
        copy = Sandbox.create(url=url, snapshot=taken)
        assert asked(daemon)[2] == {"snapshot": "snp-1"}
        daemon.answers = [NOTHING]
        copy.close()
    assert asked(daemon) == ("DELETE", "/v1/snapshots/snp-1", None)
    daemon.answers = [GONE]
    taken.delete()


def test_a_snapshot_of_this_process_is_not_the_daemons(daemon, sandbox, url, tmp_path):
    before = len(daemon.requests)
    with pytest.raises(InvalidInput, match="is not the daemon's"):
        Sandbox.create(url=url, snapshot=tmp_path)
    assert len(daemon.requests) == before


def test_forks(daemon, sandbox):
    daemon.answers = [encoded([VIEW | {"id": f"sbx-{n}"} for n in "xy"], 201)]
    copies = sandbox.fork(2)
    assert asked(daemon) == ("POST", "/v1/sandboxes/sbx-a/fork", {"count": 2})
    assert [copy.id for copy in copies] == ["sbx-x", "sbx-y"]
    daemon.answers = [NOTHING]
    for copy in copies:
        copy.close()
    assert asked(daemon) == ("DELETE", "/v1/sandboxes/sbx-y", None)


def test_a_fork_is_not_asked_for_twice(daemon, sandbox, drop):
    before = len(daemon.requests)
    daemon.answers = [drop]
    with pytest.raises(Exception, match="look before"):
        sandbox.fork(2)
    assert len(daemon.requests) == before + 1


def result(**fields):
    return {
        "request_id": "r",
        "status": "ok",
        "exit_code": 0,
        "signal": None,
        "cause": {"code": "exited", "message": ""},
        "stdout": "begin",
        "stderr": "",
        "encoding": "utf-8",
        "truncated": False,
        "usage": {},
        "timing": {},
        "sandbox": {"id": "sbx-a", "backend": "qemu", "level": "microvm"},
        "enforcement": {},
        "process": "prc-1",
    } | fields


def process(**fields):
    return {
        "id": "prc-1",
        "sandbox": "sbx-a",
        "argv": ["x"],
        "tag": None,
        "pid": 7,
        "state": "ended",
        "started": 1.0,
        "output": {"stdout": 5},
        "lost": {},
        "result": result(),
    } | fields


def test_a_long_output_is_completed_from_the_journal(daemon, sandbox):
    rest = (200, {}, b" and rest"), (200, {}, b"err")
    daemon.answers = [encoded(result(truncated=True)), *rest, encoded(process())]
    found = sandbox.run("x")
    assert (found.stdout, found.stderr, found.truncated) == (b"begin and rest", b"err", False)
    path = "/v1/sandboxes/sbx-a/processes/prc-1"
    assert [request.path for request in daemon.requests[-3:]] == [
        f"{path}/output?stream=stdout&from=5&follow=false",
        f"{path}/output?stream=stderr&from=0&follow=false",
        path,
    ]


@pytest.mark.parametrize(
    "known",
    [
        {"result": result(truncated=True)},
        {"lost": {"stdout": 1}},
        {"output": {"stdout": 6, "stderr": 0}},
        {"result": None},
    ],
)
def test_output_that_is_cut_elsewhere_stays_cut(daemon, sandbox, known):
    answers = (200, {}, b""), (200, {}, b""), encoded(process(**known))
    daemon.answers = [encoded(result(truncated=True)), *answers]
    assert sandbox.run("x").truncated


@pytest.mark.parametrize(
    ("begin", "answers", "killed"),
    [
        (lambda sandbox: sandbox.start("x"), [encoded(process(result=None))], True),
        (lambda sandbox: sandbox.attach("prc-1"), [encoded(process(result=None))], False),
        (lambda sandbox: sandbox.attach("prc-1"), [], False),
        (lambda sandbox: sandbox.call("fs.read.v1", path="x"), [], False),
    ],
    ids=["start", "attach", "attach to what is asked for first", "call"],
)
def test_a_task_is_not_held_by_a_daemon_that_hangs(daemon, url, begin, answers, killed):
    asked, over = threading.Event(), threading.Event()

    def hang(handler):
        asked.set()
        over.wait()
        handler.close_connection = True

    async def give_up():
        sandbox = await AsyncSandbox.connect("sbx-a", url=url)
        task = asyncio.ensure_future(begin(sandbox))
        try:
            await asyncio.to_thread(asked.wait)
            task.cancel()
            await asyncio.wait({task}, timeout=60)
            assert task.cancelled()
        finally:
            over.set()
            await sandbox.close()

    daemon.answers = [encoded(VIEW), *answers, hang, NOTHING]
    asyncio.run(give_up())
    assert daemon.requests[-1].path.endswith("/signal") is killed


def cut_off(data):
    """An answer of the journal that ends amid itself, as where what follows is lost."""

    def write(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        handler.close_connection = True

    return write


def test_what_is_around_a_loss_is_all_told(daemon, sandbox):
    behind = {"agentd-lost": "9-1000", "agentd-cursor": "1000"}
    known = encoded(process(lost={"stdout": 991}))
    rest = cut_off(b" and"), (200, behind, b" rest"), (200, {}, b""), known
    daemon.answers = [encoded(result(truncated=True)), *rest]
    found = sandbox.run("x")
    assert (found.stdout, found.stderr, found.truncated) == (b"begin and rest", b"", True)
    assert [request.path.partition("output")[2] for request in daemon.requests[-4:-1]] == [
        "?stream=stdout&from=5&follow=false",
        "?stream=stdout&from=9&follow=false",
        "?stream=stderr&from=0&follow=false",
    ]


@pytest.mark.parametrize("id_", ["../../keys?x", "../x", "/", "a/b"])
def test_nothing_has_an_id_with_a_slash(daemon, url, id_):
    with pytest.raises(NotFound, match=f"nothing with the id '{re.escape(id_)}'"):
        Sandbox.connect(id_, url=url)
    assert daemon.requests == []
    assert clients._shared == {}


def test_an_id_leads_nowhere_else(daemon, url):
    daemon.answers = [GONE]
    with pytest.raises(NotFound):
        Sandbox.connect("..?x", url=url)
    assert asked(daemon)[1] == "/v1/sandboxes/%2E%2E%3Fx"
    assert clients._shared == {}


def test_one_that_was_connected_to_is_let_go_of(daemon, url):
    daemon.answers = [encoded(VIEW)]
    with Sandbox.connect("sbx-a", url=url) as found:
        assert found.id == "sbx-a"
    assert [request.method for request in daemon.requests] == ["GET"]
    assert clients._shared == {}


def test_one_that_is_forgotten_frees_its_connections(daemon, url):
    daemon.answers = [encoded(VIEW, 201)]
    Sandbox.create(url=url)
    assert clients._shared == {}
    assert [request.method for request in daemon.requests] == ["POST"]


def test_nothing_is_left_of_one_that_could_not_be_made(daemon, url):
    daemon.answers = [(403, {}, b'{"code": "refused", "message": "no"}')]
    with pytest.raises(Exception, match="no"):
        Sandbox.create(url=url)
    assert clients._shared == {}


def test_who_no_longer_waits_kills_the_command_as_soon_as_it_has_begun(daemon, sandbox):
    killed = threading.Event()
    wake = os.eventfd(0)

    def answer(handler, status, content):
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def running(handler):
        os.eventfd_write(wake, 1)
        assert killed.wait(120)
        answer(handler, 200, msgspec.json.encode(result(exit_code=None, signal=9)))

    def kill(handler):
        answer(handler, 204, b"")
        killed.set()

    daemon.answers = [running, GONE, GONE, kill, NOTHING]
    ended = sandbox._service.commands.complete("sbx-a", ExecRequest(("sleep", "9")), b"", wake)
    os.close(wake)
    assert ended.signal == 9
    (_, _, body), signals = asked(daemon, 1), [asked(daemon, at) for at in (2, 3, 4)]
    path = f"/v1/sandboxes/sbx-a/processes/{body['tag']}/signal"
    assert signals == [("POST", path, {"signal": 9})] * 3
    assert len(daemon.requests) == 5
