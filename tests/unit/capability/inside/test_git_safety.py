"""Each of the two walls around git by itself: its settings, and its environment."""

import os
import subprocess
from pathlib import Path

import pytest

from agentd.capability.inside.git_safety import CONFIG, environment

PLAIN = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
SETTINGS = [part for setting in CONFIG for part in ("-c", setting)]
URLS = ("ext::sh -c touch% {}/evil", "file://{}/r", "{}/r", "http://127.0.0.1:1/", "ssh://x/y")


def git(where: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=where, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository with a hook and a file, in a home whose settings are evil."""
    env = {**PLAIN, "HOME": str(tmp_path)}
    (tmp_path / "r").mkdir()
    for command in (
        ["init", "-q", "."],
        ["-c", "user.name=a", "-c", "user.email=a", "commit", "-q", "--allow-empty", "-m", "x"],
    ):
        assert git(tmp_path / "r", *command, env=env).returncode == 0
    hook = tmp_path / "r/.git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/evil\n")
    hook.chmod(0o755)
    (tmp_path / ".gitconfig").write_text("[alias]\n\thello = !echo from home\n")
    return tmp_path


@pytest.mark.parametrize("url", URLS)
def test_settings_alone_keep_it_to_https(place: Path, url: str) -> None:
    # With "user" as the default, and no other say: it would be allowed.
    done = git(place, *SETTINGS, "ls-remote", url.format(place), env=PLAIN)
    assert "not allowed" in done.stderr
    assert not (place / "evil").exists()


@pytest.mark.parametrize("url", URLS)
def test_the_environment_alone_keeps_it_to_https(place: Path, url: str) -> None:
    arguments = ["-c", "protocol.allow=always", "ls-remote", url.format(place)]
    done = git(place, *arguments, env=environment(PLAIN))
    assert "not allowed" in done.stderr
    assert not (place / "evil").exists()


def test_those_urls_would_have_done_something(place: Path) -> None:
    git(place, "-c", "protocol.allow=always", "ls-remote", URLS[0].format(place), env=PLAIN)
    assert (place / "evil").exists()


@pytest.mark.parametrize("guarded", [True, False])
def test_settings_alone_keep_hooks_from_running(place: Path, guarded: bool) -> None:
    settings = SETTINGS if guarded else []
    done = git(place / "r", *settings, "checkout", "-q", "--detach", env=PLAIN)
    assert done.returncode == 0
    assert (place / "evil").exists() is not guarded


@pytest.mark.parametrize("guarded", [True, False])
def test_the_environment_alone_hides_the_home(place: Path, guarded: bool) -> None:
    given = {**PLAIN, "HOME": str(place)}
    done = git(place, "hello", env=environment(given) if guarded else given)
    assert (done.stdout == "from home\n") is not guarded


def test_of_the_sandbox_only_the_path_and_proxies_reach_git() -> None:
    given = {
        "PATH": "/bin",
        "https_proxy": "http://proxy.invalid",
        "GIT_SSL_NO_VERIFY": "1",
        "GIT_PROXY_COMMAND": "x",
        "GIT_DIR": "/x",
        "GIT_CONFIG_COUNT": "1",
        "GIT_TRACE": "/tmp/x",
        "LD_PRELOAD": "/x",
        "SSLKEYLOGFILE": "/x",
    }
    kept = environment(given)
    assert (kept["PATH"], kept["https_proxy"]) == ("/bin", "http://proxy.invalid")
    assert not (given.keys() - {"PATH", "https_proxy"}) & kept.keys()
    assert os.environ.keys().isdisjoint({"GIT_ALLOW_PROTOCOL"})


@pytest.mark.parametrize(
    "setting",
    [
        "http.followRedirects=false",
        "http.sslVerify=true",
        "credential.helper=",
        "submodule.recurse=false",
        "fetch.recurseSubmodules=false",
        "transfer.fsckObjects=true",
        "transfer.bundleURI=false",
        "core.fsmonitor=false",
        "core.protectHFS=true",
        "core.protectNTFS=true",
    ],
)
def test_a_setting_whose_absence_other_walls_would_hide(setting: str) -> None:
    assert setting in CONFIG
