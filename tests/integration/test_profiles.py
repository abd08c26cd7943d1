"""Every profile and every configuration in the docs, as a daemon: it starts, makes a sandbox, runs,
calls, is reloaded with, and hands out what its pool has made ahead."""

import functools
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.configured import bundle_copy, signers, tls
from tests.security.daemons import Daemon, running, until

from agentd.client.cli.main import main
from agentd.daemon.config import PROFILES
from agentd.daemon.config.values import SHIPPED_BUNDLES
from agentd.image import build
from agentd.policy.source import locate
from agentd.policy.source import read as read_bundle

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Blocks that are no configuration of a daemon, by how they begin.
_OTHERS = ('[project.entry-points."agentd.', "principal = ")


def documented() -> Iterator[tuple[str, str]]:
    pages = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    for page in pages:
        for n, text in enumerate(_BLOCK.findall(page.read_text())):
            if not text.startswith(_OTHERS):
                yield f"{page.name}-{n}", text


def as_here(text: str, folder: Path) -> str:
    """With files, a user and a port that this machine has."""
    digest = read_bundle(locate(bundle_copy(folder))).digest.removeprefix("sha256:")
    text = re.sub(r'^sha256 = "[0-9a-f]{64}"', f'sha256 = "{digest}"', text, flags=re.MULTILINE)
    tls(folder)
    signers(folder)
    shutil.copy(folder / "ca.pem", folder / "company-ca.pem")
    text = text.replace("/etc/agentd", str(folder)).replace('"ci" ', '"nobody" ')
    text = text.replace("/run/agentd/agentd.sock", f"{folder}/other.sock")
    return re.sub(r'"0\.0\.0\.0:\d+"', '"127.0.0.1:0"', text)


def serves(daemon: Daemon) -> None:
    """A sandbox, a command, and a call in it and without it."""
    id_ = daemon.sandbox()
    ran = daemon.ask("POST", f"/v1/sandboxes/{id_}/exec", {"cmd": ["echo", "here"]})
    assert ran.status == 200 and ran.json["stdout"] == "here\n", ran.body
    called = daemon.call("shell.exec.v1", {"command": "echo", "args": ["called"]}, sandbox=id_)
    assert called.status == 200 and called.json["value"]["stdout"] == "called\n", called.body
    alone = daemon.call("shell.exec.v1", {"command": "true"})
    assert alone.status == 200, alone.body
    assert daemon.ask("DELETE", f"/v1/sandboxes/{id_}").status == 204


def reload(daemon: Daemon) -> None:
    taken, refused = b"the configuration is taken over", b"the configuration is not taken over"
    before = daemon.log.count(taken)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: daemon.log.count(taken) > before or refused in daemon.log)
    assert refused not in daemon.log, daemon.log.decode()


def metric(daemon: Daemon, wanted: str) -> float:
    lines = daemon.ask("GET", "/metrics").body.decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(wanted, line))


def prepared(name: str) -> str:
    """What the machines of a profile or a policy boot is built before a request waits for it."""
    if name == "paranoid":
        build.ensure()
    return name


def pool_is_used(daemon: Daemon) -> None:
    """The first create may be a cold one where nothing is made before somebody asks."""
    before = metric(daemon, r'agentd_sandboxes_made_total\{.*source="pool"')
    daemon.sandbox()
    until(lambda: metric(daemon, "agentd_pool_ready") >= 1, seconds=300)
    daemon.sandbox()
    assert metric(daemon, r'agentd_sandboxes_made_total\{.*source="pool"') > before


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is emulated boots in a minute where others do the same."""
    monkeypatch.setattr("tests.security.daemons.WAIT", 300.0)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_serves_and_is_reloaded_with_and_its_pool_is_used(profile: str) -> None:
    with running("", "--profile", prepared(profile)) as daemon:
        serves(daemon)
        reload(daemon)  # that it serves then is asked below, of one that comes from another profile
        pool_is_used(daemon)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("profile", PROFILES)
def test_a_running_daemon_is_reloaded_into_a_profile(profile: str) -> None:
    with running() as daemon:
        serves(daemon)
        text = (daemon.folder / "agentd.toml").read_text()
        (daemon.folder / "agentd.toml").write_text(f'profile = "{prepared(profile)}"\n{text}')
        reload(daemon)
        serves(daemon)
        # Not amid making one: its group would be there for a moment longer than the daemon.
        until(lambda: metric(daemon, "agentd_pool_ready") >= 1, seconds=300)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("bundle", SHIPPED_BUNDLES)
def test_the_pool_is_used_under_each_policy_on_the_default_profile(bundle: str) -> None:
    with running(f'[policy]\nbundle = "{prepared(bundle)}"\n') as daemon:
        pool_is_used(daemon)


@pytest.mark.parametrize("profile", ["workstation", "server"])
def test_a_maximum_above_the_hard_limit_of_open_files_is_not_asked_for(
    profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3000, 3000))  # 65536 is the server's maximum

    # For the daemon alone: nobody can raise it again.
    popen = functools.partial(subprocess.Popen, preexec_fn=lower)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with running("", "--profile", profile) as daemon:
        serves(daemon)
        pool_is_used(daemon)


def test_the_pool_is_used_where_the_policy_knows_its_callers_by_name() -> None:
    rules = f'decision := {{"allow": true}} if input.principal.name == "uid:{os.getuid()}"'
    with running(policy=f'default decision := {{"allow": false}}\n\n{rules}') as daemon:
        pool_is_used(daemon)


@pytest.fixture(scope="module")
def reloaded() -> Iterator[tuple[Daemon, str]]:
    """One that is reloaded with each page's configuration in turn, and what it was started with."""
    with running() as daemon:
        yield daemon, (daemon.folder / "agentd.toml").read_text()


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in documented()])
def test_a_documented_configuration_serves_and_is_reloaded_with(
    text: str, tmp_path: Path, reloaded: tuple[Daemon, str], capfd: pytest.CaptureFixture[str]
) -> None:
    text = as_here(text, tmp_path)
    before, base = reloaded
    file = before.folder / "agentd.toml"
    file.write_text(_joined(base, text))
    assert main(["config", "check", str(file)]) == 0, capfd.readouterr().out
    reload(before)
    serves(before)
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        daemon = Daemon(Path(folder))
        file = daemon.folder / "agentd.toml"
        file.write_text(_joined(file.read_text(), text))
        try:
            daemon.start()
            assert daemon.is_up, daemon.log.decode()
            serves(daemon)
        finally:
            daemon.end()


def _joined(base: str, text: str) -> str:
    """A page's block, with the socket and the user of the test where it does not say its own."""
    parts = base.split("\n[[auth.peers]]")
    peers = "\n[[auth.peers]]" + parts[1]
    head = parts[0]
    if "[[auth.peers]]" in text:
        peers = "\n[daemon]" + peers.split("[daemon]")[1]
    return f"{head}{peers}\n{text}"


def test_every_page_is_read() -> None:
    assert len(list(documented())) >= 6
