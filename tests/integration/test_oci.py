"""Walls of OCI runtimes, by the command line, the SDK and a daemon."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.conftest import OrdinaryUser
from tests.security.daemons import running

from agentd import InvalidInput, Refused, Sandbox
from agentd.client.cli.main import main
from agentd.sandbox.backends.oci import runtimes

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(params=runtimes.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if runtimes.find(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def builder(sandbox: Sandbox) -> str:
    return sandbox.enforcement["runtime"].detail.partition(" ")[0]


def test_the_command_line_names_the_runtime(
    runtime: str, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", "--embedded", "--backend", "oci", "--runtime", runtime, "--json"]
    assert main([*argv, "--", "id", "-un"]) == 0
    told: Any = json.loads(capfd.readouterr().out)
    assert told["stdout"] == "sandbox\n"
    assert told["enforcement"]["runtime"]["asked"] == runtime
    assert told["enforcement"]["runtime"]["detail"].startswith(f"{runtime} ")


@pytest.mark.root
def test_a_python_beneath_what_a_sandbox_writes_to_will_do(
    runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was unpacked in /tmp."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    real = Path(sys.executable).resolve().relative_to(os.path.realpath(sys.base_prefix))
    words = ["-m", "agentd", "run", "--embedded", "--backend", "oci", "--runtime", runtime]
    shell = 'mount --bind "$0" "$1" && cd / && shift && exec "$@"'
    with TemporaryDirectory(dir="/tmp") as there:
        moved = ["unshare", "--mount", "sh", "-c", shell, sys.base_prefix, there]
        done = subprocess.run(
            [*moved, f"{there}/{real}", *words, "--", "echo", "made"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "made\n"), done.stderr


@pytest.mark.parametrize("most", [28, 32])
def test_what_is_short_of_descriptors_is_told(runtime: str, most: int) -> None:
    words = ["run", "--embedded", "--backend", "oci", "--runtime", runtime, "--", "true"]
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {most}; exec "$@"', "-", sys.executable, "-m", "agentd", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert "Too many open files" in done.stderr
    assert "(ulimit -n)" in done.stderr


def test_a_runtime_alone_chooses_the_wall_that_has_it(runtime: str) -> None:
    with Sandbox.create(runtime=runtime, embedded=True) as sandbox:
        assert (sandbox.info.backend, builder(sandbox)) == ("oci", runtime)


def test_what_the_kernel_allows_is_asked_once(runtime: str) -> None:
    """By a fork, which copies the tables of all the memory that a daemon has."""
    forks: list[None] = []
    with Sandbox.create(backend="oci", runtime=runtime, embedded=True):
        os.register_at_fork(before=lambda: forks.append(None))
        with Sandbox.create(backend="oci", runtime=runtime, embedded=True) as sandbox:
            assert sandbox.run("echo on", check=True).text == "on\n"
    assert forks == []


def test_a_daemon_takes_the_one_of_its_configuration_unless_one_is_asked_for(runtime: str) -> None:
    other = next(name for name in runtimes.RUNTIMES if name != runtime)
    with running(f"[sandbox]\nruntime = '{runtime}'\n") as daemon:
        with Sandbox.create(url=daemon.url, backend="oci") as sandbox:
            assert builder(sandbox) == runtime
            assert sandbox.run("id -u", check=True).text == "1000\n"
        with Sandbox.create(url=daemon.url) as sandbox:
            assert sandbox.info.backend == "linux"
        if runtimes.find(other) is not None:
            with Sandbox.create(url=daemon.url, backend="oci", runtime=other) as sandbox:
                assert builder(sandbox) == other


def test_a_runtime_that_a_wall_has_not_is_refused() -> None:
    with pytest.raises(Refused, match="backend linux has no runtime runc") as refused:
        Sandbox.create(backend="linux", runtime="runc", embedded=True)
    assert refused.value.remediation == "drop runtime=, or name a backend that has it: oci"
    with pytest.raises(Refused, match="backend oci has no runtime docker") as refused:
        Sandbox.create(backend="oci", runtime="docker", embedded=True)
    assert refused.value.remediation == "drop runtime=, or name one of: runc, crun"
    with pytest.raises(InvalidInput, match="unknown runtime 'docker'") as unknown:
        Sandbox.create(runtime="docker", embedded=True)
    assert unknown.value.remediation == "use one of: runc, crun, runsc, runsc-kvm"
    with pytest.raises(InvalidInput, match=r"runtime '\.\./runc' is not a name"):
        Sandbox.create(backend="oci", runtime="../runc", embedded=True)


def test_without_root_a_command_has_no_privilege_either(
    as_user: OrdinaryUser, runtime: str
) -> None:
    """Its agent becomes the sandbox's user in a user namespace of its own, with all that has."""
    argv = ["run", "--embedded", "--backend", "oci", "--runtime", runtime]
    done = as_user.agentd(*argv, "--", "cat", "/proc/self/status")
    assert done.returncode == 0, done.stderr
    lines = (line.partition(":") for line in done.stdout.decode().splitlines())
    told = {name: value.split() for name, _, value in lines}
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert told[name] == ["0" * 16], name
    assert (told["Uid"], told["NoNewPrivs"], told["Seccomp"]) == (["1000"] * 4, ["1"], ["2"])


@pytest.mark.root
@pytest.mark.needs("unshare", "mount")
def test_where_control_groups_are_version_2_the_same_is_built(runtime: str) -> None:
    """As a runtime sees it: a mount over the machine's own, in a namespace of mounts of its own."""
    run = (sys.executable, "-m", "agentd", "run", "--embedded", "--backend", "oci")
    script = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh"),
            *(*run, "--runtime", runtime, "--", "id", "-u"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
