"""The backend against runtimes and launchers that fail it; what works is in the suite of walls."""

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from agentd.model.errors import InvalidInput, Refused, SandboxError
from agentd.model.spec import ExecRequest, SandboxSpec
from agentd.sandbox.backends.oci import container, runtimes
from agentd.sandbox.backends.oci.backend import OciBackend
from agentd.transport.guest import Guest


@pytest.fixture
def backend():
    backend = OciBackend()
    found = backend.probe()
    if not found.usable:
        pytest.skip(f"oci: {'; '.join(blocker.what for blocker in found.blockers)}")
    yield backend
    backend.close()


@pytest.fixture
def folder():
    """Of programs: what is in /tmp a builder does not see."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as path:
        os.chmod(path, 0o755)  # noqa: S103 the launcher's user goes there
        yield Path(path)


@pytest.fixture(params=runtimes.RUNTIMES)
def runtime(request, backend):
    if runtimes.find(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return request.param


def output(wall, *argv):
    guest = Guest(wall.open_stream, passes_descriptors=wall.passes_descriptors)
    try:
        end, stdout, stderr, _ = guest.run(ExecRequest(argv))
        assert end.ok, stderr
        return stdout
    finally:
        guest.close()


def outside(wall):
    """Users and groups of the machine that its user namespace has."""
    maps = [Path(f"/proc/{wall.pid}/{kind}_map").read_text() for kind in ("uid", "gid")]
    return {int(line.split()[1]) for lines in maps for line in lines.splitlines()}


def stand_in(folder, monkeypatch, script):
    """A ``runc`` that is none."""
    path = folder / "runc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def alive(word):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if word.encode() in line:
                found.append(entry.name)
    return found


def test_each_runtime_says_who_it_is_and_keeps_nothing(backend, runtime):
    wall = backend.launch(backend.plan(SandboxSpec(runtime=runtime)))
    try:
        assert output(wall, "id", "-u") == b"1000\n"
        assert wall.enforcement["runtime"].detail.startswith(f"{runtime} ")
        # Our filter on top of the runtime's, which was there before any code of the root's ran.
        status = Path(f"/proc/{wall.pid}/status").read_text()
        assert "Seccomp_filters:\t2\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert "CapBnd:\t0000000000000000\n" in status
        assert 0 not in outside(wall)
    finally:
        wall.kill()
    assert list(Path("/run", runtime).glob("agentd-*")) == []


def test_root_inside_has_the_ids_of_its_block_and_roots_few_capabilities(backend, runtime):
    wall = backend.launch(backend.plan(SandboxSpec(runtime=runtime, user="root")))
    try:
        status = output(wall, "cat", "/proc/self/status").decode()
        assert "Uid:\t0\t0\t0\t0\n" in status
        assert "CapEff:\t00000000800405fb\n" in status
        assert 0 not in outside(wall)
    finally:
        wall.kill()


def test_a_launcher_that_was_killed_is_replaced(backend):
    plan = backend.plan(SandboxSpec())
    first = backend.launch(plan)
    killed = backend._launcher.pid
    os.kill(killed, signal.SIGKILL)
    assert first.wait(60)  # it ends with its launcher
    first.kill()
    second = backend.launch(plan)
    assert backend._launcher.pid != killed
    assert output(second, "echo", "here") == b"here\n"
    second.kill()


def test_a_runtime_that_hangs_is_ended_with_what_it_started(backend, folder, monkeypatch):
    word = f"87{int.from_bytes(os.urandom(4)):010d}"
    stand_in(folder, monkeypatch, f"setsid sleep {word} & sleep {word}")
    monkeypatch.setattr(container, "_RUNTIME_SECONDS", 0.5)
    with pytest.raises(SandboxError, match=r"runc could not build the sandbox.*within 0\.5 s"):
        backend.launch(backend.plan(SandboxSpec()))
    deadline = time.monotonic() + 60
    while alive(word):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_runtime_that_fails_is_told_in_its_own_words(backend, folder, monkeypatch):
    script = 'while [ "$1" != --log ]; do shift; done; echo no such luck >> "$2"; exit 3'
    stand_in(folder, monkeypatch, script)
    with pytest.raises(SandboxError, match="no such luck"):
        backend.launch(backend.plan(SandboxSpec()))


# A runtime that starts nothing, and says what it was told.
_SAYS = """\
#!/usr/bin/python3
import json, sys
place = dict(zip(sys.argv, sys.argv[1:]))
with open(place["--bundle"] + "/config.json") as told, open(place["--log"], "w") as log:
    config = json.load(told)
    process, linux = config["process"], config["linux"]
    log.write(json.dumps([
        config["root"]["readonly"], process["noNewPrivileges"], process["capabilities"],
        linux["readonlyPaths"], linux["maskedPaths"], len(linux["seccomp"]["syscalls"]) > 20,
    ]))
sys.exit(3)
"""


def test_a_runtime_is_told_what_the_agent_puts_in_force_again(backend, folder, monkeypatch):
    """Code of an image's may run before the agent's steps: these hold by then."""
    stand_in(folder, monkeypatch, "")
    (folder / "runc").write_text(_SAYS)
    with pytest.raises(SandboxError) as failed:
        backend.launch(backend.plan(SandboxSpec()))
    readonly, no_new_privs, capabilities, readable, masked, filtered = json.loads(
        failed.value.cause
    )
    assert readonly and no_new_privs and filtered
    assert {kind: names for kind, names in capabilities.items() if names} == {}
    assert {"/proc/sys", "/proc/sysrq-trigger", "/proc/irq"} <= {*readable}
    assert masked


def test_a_runtime_that_is_not_there_is_named_with_its_package(backend, monkeypatch):
    monkeypatch.setattr(runtimes, "find", lambda name: None)
    with pytest.raises(Refused, match="crun is not installed") as refused:
        backend.plan(SandboxSpec(runtime="crun"))
    assert "apt install crun" in refused.value.remediation
    with pytest.raises(InvalidInput, match="unknown OCI runtime 'docker'"):
        backend.plan(SandboxSpec(runtime="docker"))
    found = OciBackend().probe()
    assert not found.usable
    for word in ("apt install runc", "dnf install crun", "pacman -S runc"):
        assert word in found.blockers[0].fix


def test_a_relay_that_serves_nobody_ends_with_it(backend, folder, monkeypatch):
    (folder / "roots.pem").write_text("no certificate\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "roots.pem"))
    spec = SandboxSpec(net="restricted", egress=("read a.example",))
    with pytest.raises(SandboxError, match="connections cannot be read"):
        backend.launch(backend.plan(spec))
