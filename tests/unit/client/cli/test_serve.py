import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.client import embedded
from agentd.client.cli import main as cli
from agentd.client.cli import serve
from agentd.model.errors import InvalidInput


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AGENTD_")]:
        monkeypatch.delenv(name)
    (tmp_path / "agentd.toml").write_text("")
    monkeypatch.setenv("AGENTD_CONFIG", str(tmp_path / "agentd.toml"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def record(*args: object) -> int:
        calls.append(args)
        return 0

    monkeypatch.setattr(embedded, "serve", record)
    return calls


def test_options_stand_above_the_file(
    asked: list[tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--listen", "unix:a.sock", "--listen", "127.0.0.1:80", "--state", "st", "--insecure"]
    assert serve.main([*words, "--config", "x.toml", "--profile", "server"]) == 0
    ((path, _, profile, given),) = asked
    assert (path, profile) == ("x.toml", "server")
    assert given == [
        (("listen",), [{"address": f"unix:{tmp_path}/a.sock"}, {"address": "127.0.0.1:80"}]),
        (("daemon", "state"), f"{tmp_path}/st"),
        (("daemon", "insecure"), True),
    ]


def test_without_options_nothing_is_said(asked: list[tuple[object, ...]]) -> None:
    serve.main([])
    assert asked[0][0] is None and asked[0][2:] == (None, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--listen", "0.0.0.0:8443"], "in the clear"),
        (["--listen", "0.0.0.0:8443", "--insecure"], "let in without a credential"),
        (["--listen", "nonsense"], "is no address"),
        (["--profile", "servr"], "did you mean 'server'"),
        (
            ["--config", "/nowhere/agentd.toml"],
            "No such file or directory (name a file that is there",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_started(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *words]) == 2
    assert said in capsys.readouterr().err


def test_tcp_on_loopback_needs_somebody_who_could_authenticate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agentd.toml").write_text("[auth.keys]\nenabled = false\n")
    assert cli.main(["serve", "--listen", "127.0.0.1:0"]) == 2
    assert "nobody could authenticate" in capsys.readouterr().err


def test_help_costs_no_daemon() -> None:
    code = (
        "import sys\nfrom agentd.client.cli.main import main\n"
        "try: main(['serve', '--help'])\nexcept SystemExit: pass\n"
        "heavy = ('starlette', 'uvicorn', 'structlog', 'prometheus_client', 'agentd.daemon')\n"
        "assert not [m for m in sys.modules if m.startswith(heavy)]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "examples:" in done.stdout and "--insecure" in done.stdout


def test_a_daemon_begins_without_what_it_may_never_need() -> None:
    code = (
        "import sys, agentd.serve.compose, agentd.ingest.rest.app\n"
        "waiting = ('rich', 'pygments', 'h11', 'websockets.client')\n"
        "assert not [m for m in sys.modules if m.startswith(waiting)]\n"
        "import rich.console"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_odd_option_is_bad_input() -> None:
    with pytest.raises(InvalidInput):
        serve.main(["--port", "80"])


@pytest.mark.parametrize("digest", ["sha256:" + "aB" * 32, "ab" * 32, "sha256:" + "ab" * 32])
def test_a_digest_pins_the_policy(asked: list[tuple[object, ...]], digest: str) -> None:
    assert serve.main(["--capability-digest", digest]) == 0
    ((*_, given),) = asked
    assert given == [(("policy", "sha256"), "ab" * 32)]


@pytest.mark.parametrize("digest", ["ab", "sha256:" + "xy" * 32, "md5:" + "ab" * 32, "ab" * 33])
def test_what_is_no_digest_pins_nothing(
    asked: list[tuple[object, ...]], digest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--capability-digest", digest]) == 2
    assert "is no SHA-256" in capsys.readouterr().err
    assert asked == []


def test_what_the_command_line_says_wrong_is_not_put_on_the_environment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENTD_CONFIG")
    monkeypatch.setattr("agentd.daemon.config.find", lambda *_: None)
    assert cli.main(["serve", "--listen", "foo"]) == 2
    told = capsys.readouterr().err
    assert "listen[0].address: 'foo' is no address" in told and "environment" not in told
