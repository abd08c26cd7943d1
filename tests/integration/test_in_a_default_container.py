"""Root and an ordinary user where Docker's own seccomp profile forbids namespaces: which wall works
is told, with what gives the next, and no wall is called usable that is not."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contained import CONTAINER, with_capabilities
from tests.security.daemons import Daemon
from tests.without_call import DOCKER

from agentd.linux import abi

LAUNCHER = str(Path(__file__).parents[1] / "without_call.py")
_SDK = """
from agentd import Sandbox
from agentd.model.errors import AgentdError
try:
    Sandbox.create()
except AgentdError as error:
    print(error.code, error.remediation, sep="|")
"""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(abi.MACHINE != "x86_64", reason="the launcher knows x86-64's calls"),
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Where an ordinary user may go, too."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="agentd-contained-") as folder:
        os.chmod(folder, 0o755)  # noqa: S103  what lies in it is made for that user
        yield Path(folder)


def _run(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AGENTD_")}
    prefix = [*with_capabilities(*CONTAINER), sys.executable, LAUNCHER, DOCKER, "--"]
    return subprocess.run(
        [*prefix, sys.executable, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=kept | variables,
        timeout=300,
        check=False,
    )


def _agentd(*words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return _run("-m", "agentd", *words, **variables)


def _result(*words: str) -> Any:
    done = _agentd("run", "--json", "--isolation", "process", *words)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("variables", "option"), [
    ({"container": "docker"}, "docker run --security-opt seccomp=unconfined"),
    ({"container": "podman"}, "podman run --security-opt seccomp=unconfined"),
    ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "seccompProfile"),
], ids=["docker", "podman", "kubernetes"])  # fmt: skip
def test_the_refusal_names_the_wall_that_works_and_the_option(
    variables: dict[str, str], option: str
) -> None:
    done = _agentd("run", "--", "true", **variables)
    assert done.returncode == 125
    assert done.stderr.count("--isolation process works here") == 1
    assert done.stderr.count(option) == 1
    assert len(done.stderr) < 600 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("asked", [(), ("--isolation", "process")], ids=["default", "process"])
def test_no_wall_is_recommended_that_a_capability_does_not_run_in(asked: tuple[str, ...]) -> None:
    words = ("call", "python.exec.v1", "--params", '{"code":"1"}', *asked, "--embedded")
    done = _agentd(*words, container="docker")
    assert done.returncode == 125
    assert "python.exec.v1 wants isolation namespace, and no backend here gives" in done.stderr
    assert "--isolation process" not in done.stderr
    assert "docker run --security-opt" in done.stderr
    # Of one that does it is.
    done = _agentd("call", "fs.list.v1", "--embedded")
    assert done.stderr.count("--isolation process works here") == 1


def test_nor_one_that_the_policy_does_not_allow(tmp_path: Path) -> None:
    words = ("call", "fs.list.v1", "--isolation", "process", "--embedded")
    done = _agentd(*words, AGENTD_POLICY="strict", XDG_STATE_HOME=str(tmp_path))
    assert "the policy wants isolation namespace, and no backend here gives" in done.stderr
    assert "--isolation process" not in done.stderr


def test_the_sdk_raises_what_can_be_caught_with_the_fix() -> None:
    done = _run("-c", _SDK)
    code, _, fix = done.stdout.partition("|")
    assert code == "unavailable" and 'isolation="process"' in fix, done.stdout + done.stderr


def test_a_daemon_says_what_lets_it_be_asked_for(tmp_path: Path) -> None:
    prefix = [*with_capabilities(*CONTAINER), sys.executable, LAUNCHER, DOCKER, "--"]
    daemon = Daemon(tmp_path, prefix=prefix)
    try:
        daemon.start()
        body = {"exec": {"cmd": ["id", "-u"]}, "sandbox": {"isolation": "process"}}
        answer = daemon.ask("POST", "/v1/run", body)
        assert answer.code == "unavailable"
        assert 'sandbox.minimum = "process"' in answer.json["remediation"], answer.body
        daemon.stop()
        daemon.configure('[sandbox]\nminimum = "process"\n')
        daemon.start()
        answer = daemon.ask("POST", "/v1/run", body)
        assert answer.status == 200 and int(answer.json["stdout"]) > 1 << 16, answer.body
    finally:
        daemon.end()


def test_doctor_calls_no_wall_usable_that_is_not() -> None:
    done = _agentd("doctor", "--json")
    found = json.loads(done.stdout)
    usable = {wall["name"] for wall in found["backends"] if wall["usable"]}
    assert usable == {"host", "landlock"}
    assert found["run"]["weaker"] == "process"
    assert found["machine"]["user_namespaces"] is False


def test_a_workspace_is_written_as_its_owner(home: Path) -> None:
    folder = home / "project"
    folder.mkdir()
    os.chown(folder, 12345, 12346)
    found = _result("-w", str(folder), "--", "sh", "-c", "id -u; id -g; echo made > made")
    assert found["stdout"] == "12345\n12346\n", found["stderr"]
    made = os.stat(folder / "made")
    assert (made.st_uid, made.st_gid) == (12345, 12346)
    user = found["enforcement"]["user"]
    assert not user["enforced"] and "12345" in user["detail"]
    assert not found["enforcement"]["shared"]["enforced"]
    found = _result("-w", str(folder), "--", "chmod", "777", "made")
    assert "not permitted" in found["stderr"]


def test_one_of_roots_is_refused_with_the_ways_out(home: Path) -> None:
    folder = home / "project"
    folder.mkdir()
    done = _agentd("run", "--isolation", "process", "-w", str(folder), "--", "true")
    assert done.returncode == 125
    for said in (str(folder), "root's", ":ro", "chown"):
        assert said in done.stderr, said


def test_one_that_everybody_may_write_is_written_by_a_user_that_owns_nothing(home: Path) -> None:
    folder = home / "open"
    folder.mkdir()
    folder.chmod(0o777)
    found = _result("-w", str(folder), "--", "sh", "-c", "echo made > made")
    assert found["exit_code"] == 0, found
    assert found["enforcement"]["user"]["enforced"]
    assert os.stat(folder / "made").st_uid > 1 << 16


def test_an_owner_who_cannot_get_there_is_told(home: Path) -> None:
    closed = home / "closed"
    (closed / "project").mkdir(parents=True)
    os.chown(closed / "project", 12345, 12345)
    closed.chmod(0o700)
    done = _agentd("run", "--isolation", "process", "-w", f"{closed}/project", "--", "true")
    assert done.returncode == 125
    assert "12345" in done.stderr and f"chmod o+x {closed}" in done.stderr
