"""What a caller sees of machines that behave as Firecracker's did where it ran: its programs are
stand-ins, and the sandbox, the pipeline and the wall are the real ones.
"""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.security.test_streams_of_a_guest import closed
from tests.supervised import supervised

from agentd.client import build
from agentd.client.embedded_service import EmbeddedService
from agentd.client.sandbox import Sandbox
from agentd.daemon.pipeline import Pipeline
from agentd.linux import cgroup
from agentd.model.errors import BackendLost, Refused, SandboxError, Unsupported
from agentd.model.principal import local
from agentd.model.result import CauseCode
from agentd.sandbox import abilities
from agentd.sandbox.backends.vm import ceiling, states
from agentd.sandbox.manager import Manager

pytestmark = pytest.mark.root
WHO = local("test")
Create = Callable[..., Sandbox]


@pytest.fixture
def create(make_backend: Callable[..., Any]) -> Iterator[Create]:
    """``Sandbox.create`` on this wall; the first two arguments are the backend's. One a test."""
    pipelines: list[Pipeline] = []

    def create(version: str = "1.16.1", programs: Any = None, **wanted: Any) -> Sandbox:
        if not pipelines:
            backend = make_backend(version, **(programs or {}))
            pipelines.append(Pipeline(Manager(made={"firecracker": backend})))
        usual: dict[str, Any] = {} if "image" in wanted else {"memory": "64M"}
        return opened(pipelines[0], **(usual | wanted))

    yield create
    for pipeline in pipelines:
        pipeline.manager.close()


def opened(pipeline: Pipeline, **wanted: Any) -> Sandbox:
    spec = build.sandbox_spec(backend="firecracker", **wanted)
    service = EmbeddedService(pipeline, WHO)
    return Sandbox(service, service.adopt(pipeline.open(WHO, spec)))


def run(sandbox: Sandbox, argv: list[str], **wanted: Any) -> Any:
    """In a directory that there is: the stand-in's guest has the host's."""
    return sandbox.run(argv, cwd="/", **wanted)


def kill_monitor(sandbox: Sandbox, number: int) -> None:
    """As the kernel or an operator might kill its monitor."""
    wall: Any = sandbox._service.handle(sandbox.id).wall  # type: ignore[attr-defined]
    signal.pidfd_send_signal(wall._pidfd, number)


# --- an image whose agent is the original one ---


@pytest.fixture
def theirs(create: Create, image: Any, make_backend: Callable[..., Any]) -> Iterator[Create]:
    backend = make_backend("1.16.1", original=True)
    backend._image = lambda _: image._replace(base="own")
    pipeline = Pipeline(Manager(made={"firecracker": backend}))

    def open_one(**wanted: Any) -> Sandbox:
        return opened(pipeline, image="theirs", **wanted)

    yield open_one
    pipeline.manager.close()


def test_the_original_agent_runs_commands(theirs: Create) -> None:
    with theirs() as sandbox:
        assert sandbox.run(["uname", "-s"]).text == "Linux\n"
        assert sandbox.run(["pwd"]).text == "/\n"
        assert sandbox.run(["pwd"], cwd="/tmp").text == "/tmp\n"
        assert sandbox.run(["cat"], stdin="text\n").text == "text\n"
        assert sandbox.run(["sh", "-c", "exit 3"]).exit_code == 3


def test_what_a_guest_of_the_original_agents_does_not_do_is_told(theirs: Create) -> None:
    with theirs() as sandbox:
        said = sandbox.run(["true"]).enforcement
        assert said["virtual_machine"].enforced
        for name in ("identity", "memory", "pids", "disk", "open_files"):
            assert not said[name].enforced, name
        assert said["identity"].detail == "as the image has it: its agent is not ours"
        with pytest.raises(Refused, match="not ours"):
            sandbox.snapshot()
        with pytest.raises((Refused, Unsupported), match="v1"):
            sandbox.start(["sleep", "1"]).signal(signal.SIGTERM)
    for wanted in ({"pids": 10}, {"memory": "64M"}, {"user": "root"}):
        with pytest.raises(Refused, match="its agent is not ours"):
            theirs(**wanted)
    for what, wanted in (
        ("secrets", {"secrets": ["KEY=env:PATH@a.example"]}),
        ("a network", {"net": ["read a.example"]}),
    ):
        with pytest.raises(Refused, match=f"cannot be given {what}: its agent is not ours"):
            theirs(**wanted)


# --- a snapshot resets every connection, of which nothing is seen ---


def test_the_first_command_after_a_snapshot_is_not_lost(create: Create) -> None:
    with create() as sandbox:
        for _ in range(2):
            assert run(sandbox, ["echo", "before"]).text == "before\n"
            with sandbox.snapshot():
                pass
            result = run(sandbox, ["echo", "after"])
            assert result.cause.code is CauseCode.EXITED, result.cause
            assert result.text == "after\n"


def test_the_first_file_after_a_fork_is_not_lost(create: Create, place: Path) -> None:
    with create() as sandbox:
        path = tempfile.mkdtemp(dir=place)
        os.chmod(path, 0o777)  # noqa: S103
        sandbox.files.write(f"{path}/file", b"kept")
        (copy,) = sandbox.fork()
        with copy:
            assert sandbox.files.read(f"{path}/file") == b"kept"
            assert run(copy, ["echo", "copy"]).text == "copy\n"


def test_a_command_on_a_stream_that_died_without_a_sign_is_sent_again(create: Create) -> None:
    with create() as sandbox:
        run(sandbox, ["true"])
        wall: Any = sandbox._service.handle(sandbox.id).wall  # type: ignore[attr-defined]
        folder = tempfile.mkdtemp()
        wall.snapshot(folder)  # past the manager, which would have told
        (path,) = Path(str(wall.save()["jail"])).glob("root/guest-*")
        script = f"cat; echo once >> {path}/ran"
        result = run(sandbox, ["sh", "-c", script], stdin=b"x" * 100_000)
        assert len(result.stdout) == 100_000, result.cause
        assert (path / "ran").read_text() == "once\n"


@pytest.fixture(params=["embedded", "supervised"])
def waiting(
    request: pytest.FixtureRequest, make_backend: Callable[..., Any]
) -> Iterator[tuple[Sandbox, socket.socket, Any, Any]]:
    """A sandbox, who listens where it can be dialled, and what waits at one: a tunnel, a client."""
    with contextlib.ExitStack() as stack:
        backend = make_backend("1.16.1")
        if request.param == "supervised":
            pipeline = stack.enter_context(supervised(backend)).pipeline
        else:
            pipeline = Pipeline(Manager(made={"firecracker": backend}))
            stack.callback(pipeline.manager.close)
        sandbox = stack.enter_context(opened(pipeline, memory="64M"))
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        number = server.getsockname()[1]
        tunnel = stack.enter_context(sandbox.ports.open(number))
        address = stack.enter_context(sandbox.ports.forward(number)).address
        yield sandbox, server, tunnel, stack.enter_context(socket.create_connection(address, 60))


def test_who_waits_at_a_port_over_a_snapshot_is_told_of_its_end(waiting: Any) -> None:
    """The machine alone hears that the connections are no more."""
    sandbox, server, tunnel, client = waiting
    peers = [server.accept()[0] for _ in range(2)]
    with sandbox.snapshot():
        pass
    with pytest.raises(BackendLost):
        tunnel.recv(60)
    assert closed(client)
    for peer in peers:
        assert closed(peer)
        peer.close()
    with sandbox.ports.open(server.getsockname()[1]) as again:
        server.accept()[0].close()
        assert again.recv(60) == b""


def test_who_watches_over_a_snapshot_is_told_of_its_end(create: Create, place: Path) -> None:
    path = tempfile.mkdtemp(dir=place)
    os.chmod(path, 0o777)  # noqa: S103
    with ThreadPoolExecutor(1) as threads, create() as sandbox:
        changes = sandbox.files.watch(path)
        sandbox.files.write(f"{path}/0", b"")
        assert next(changes)
        with sandbox.snapshot():
            pass
        rest = threads.submit(list, changes)
        with pytest.raises(BackendLost):
            rest.result(60)


def test_a_snapshot_that_takes_too_long_leaves_its_source_running(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create(programs={"hang": "/snapshot/create"}) as sandbox:
        monkeypatch.setattr(states, "seconds", lambda memory: memory / (224 << 20))
        with pytest.raises(BackendLost, match=r"no answer to PUT /snapshot/create.*within 1 s"):
            sandbox.snapshot()
        assert run(sandbox, ["echo", "on"]).text == "on\n"


# --- what a release cannot is no ability of its sandboxes ---


@pytest.mark.parametrize(
    ("version", "uses", "words"),
    [
        ("1.16.1", ["pause"], r"no new vsock connection works in 1\.16\.1 \(#6074\).* 1\.15\.1 or"),
        ("1.16.0", ["pause"], r"#6074"),
        ("1.16.0", ["snapshot", "fork"], r"vsock can be dead after a restore in 1\.16\.0 \(#5958"),
    ],
)
def test_what_its_release_cannot_is_refused_before_anything_happens(
    create: Create, version: str, uses: list[str], words: str
) -> None:
    with create(version) as sandbox:
        wall = sandbox._service.handle(sandbox.id).wall  # type: ignore[attr-defined]
        for use in uses:
            with pytest.raises(Unsupported, match=f"cannot {use} a sandbox: .*{words}") as caught:
                getattr(sandbox, use)()
            assert "qemu" in caught.value.remediation
            assert use not in abilities.names(wall)
        assert run(sandbox, ["echo", "on"]).text == "on\n"


# --- a snapshot's file counts as its monitor's memory ---

memory_is_held = pytest.mark.skipif(
    (found := cgroup.detect()) is None or bool(found.blockers()) or not os.path.isdir("/dev/shm"),
    reason="no memory controller, or no tmpfs at /dev/shm",
)


@memory_is_held
class TestInMemory:
    """The jails lie on tmpfs, and the guest uses all of its memory."""

    @pytest.fixture
    def place(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="fc-", dir="/dev/shm") as name:
            os.chmod(name, 0o755)  # noqa: S103
            yield Path(name)

    def test_a_snapshot_does_not_end_its_source(self, create: Create) -> None:
        with create(programs={"full": True}, memory="16M") as sandbox:
            with sandbox.snapshot() as kept:
                assert kept.size >= 176 << 20
            assert run(sandbox, ["echo", "on"]).text == "on\n"
            group: Any = sandbox._service.handle(sandbox.id).wall._group  # type: ignore[attr-defined]
            assert limit_of(group) == (16 + 160 + 64) << 20  # the ceiling is back

    def test_one_that_memory_has_no_room_for_is_refused_first(
        self, create: Create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with create(memory="16M") as sandbox:
            monkeypatch.setattr(ceiling, "_available", lambda: 100 << 20)
            with pytest.raises(SandboxError, match="no memory for a snapshot") as caught:
                sandbox.snapshot()
            assert caught.value.remediation
            assert run(sandbox, ["echo", "on"]).text == "on\n"

    def test_a_machine_that_its_group_ends_ran_out_of_memory(
        self, create: Create, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ceiling.Ceiling, "raised", _never_raised)
        with create(programs={"full": True}, memory="16M") as sandbox:
            with pytest.raises(SandboxError, match="outgrew its control group's memory"):
                sandbox.snapshot()
            with pytest.raises(BackendLost, match="outgrew"):
                run(sandbox, ["true"])


def _never_raised(self: object, size: int) -> Any:
    return contextlib.nullcontext()


def limit_of(group: Any) -> int:
    places = group.where()["directories"]
    memory = places.get("memory") or places.get("unified")
    for name in ("memory.limit_in_bytes", "memory.max"):
        if os.path.exists(f"{memory}/{name}"):
            return int(Path(f"{memory}/{name}").read_text())
    raise AssertionError(places)


# --- how a machine ended ---


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGSYS, CauseCode.SECCOMP_VIOLATION, "system call 232, which its filter forbids"),
        (signal.SIGBUS, CauseCode.OOM, "memory that is not there (SIGBUS) (status 149)"),
        (signal.SIGKILL, CauseCode.BACKEND_LOST, "it was killed"),
    ],
)
def test_the_end_of_a_machine_is_the_cause_of_its_command(
    create: Create, number: int, code: CauseCode, words: str
) -> None:
    with create() as sandbox, sandbox.start(["sh", "-c", "echo on; sleep 60"], cwd="/") as process:
        assert next(iter(process)).data == b"on\n"
        kill_monitor(sandbox, number)
        cause = process.wait().cause
        assert cause.code is code
        assert words in cause.message
        if number != signal.SIGKILL:
            assert "Shutting down VM after intercepting" in cause.message
        # And whoever comes later is told the same.
        with pytest.raises(BackendLost) as caught:
            run(sandbox, ["true"])
        assert words in str(caught.value)


def test_whoever_comes_later_to_a_daemons_machine_is_told_the_same(
    make_backend: Callable[..., Any],
) -> None:
    with (
        supervised(make_backend("1.16.1")) as (pipeline, supervisor, _),
        opened(pipeline, memory="64M") as sandbox,
    ):
        (entry,) = supervisor._entries.values()
        wall: Any = entry.wall
        signal.pidfd_send_signal(wall._pidfd, signal.SIGBUS)
        assert wall.wait(60)
        with pytest.raises(BackendLost, match=r"memory that is not there \(SIGBUS\)"):
            run(sandbox, ["true"])


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({"exits": {"/actions": 148}}, "system call 232, which its filter forbids (status 148)"),
        ({"exits": {"/boot-source": 152}}, "its configuration is wrong (status 152)"),
    ],
)
def test_the_end_of_a_machine_is_the_cause_of_a_failed_start(
    create: Create, programs: dict[str, Any], words: str
) -> None:
    with pytest.raises(SandboxError) as caught:
        create(programs=programs)
    assert words in str(caught.value)


def test_what_a_guest_makes_it_log_does_not_push_out_why_it_ended(create: Create) -> None:
    programs = {"chatter": "[main:ERROR] what matters", "noise": 3000}
    with create(programs=programs) as sandbox, sandbox.start(["sleep", "60"], cwd="/") as process:
        kill_monitor(sandbox, signal.SIGKILL)
        assert "what matters" in process.wait().cause.message
