"""docs/signed-requests.md: its example is run, and what it makes is verified."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentd.auth.signers import Signers
from agentd.auth.signing import verify

DOC = (Path(__file__).parents[2] / "docs/signed-requests.md").read_text()
SCRIPTS = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)


class Once:
    def first_use(self, key: str, nonce: str, issued: float) -> bool:
        return True


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the console's commands have been run, and the public key installed."""
    (console,) = blocks("console")
    commands = [line.removeprefix("$ ") for line in console.splitlines() if line.startswith("$ ")]
    install = blocks("sh")[0].replace("/etc/agentd/signers", "signers")
    (tmp_path / "signers").mkdir(mode=0o755)
    script = "\n".join(["set -e", *commands, install])
    env = {**os.environ, "PATH": f"{SCRIPTS}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ed25519:[0-9a-f]{32}\n", done.stdout)
    return tmp_path


def signer(place: Path, text: str) -> str:
    signers = Signers(str(place / "signers"))
    assert signers.problems == ()
    return verify(json.loads(text), signers, Once(), time.time()).acts_as().name


def test_what_the_command_line_signs_holds(place: Path) -> None:
    assert signer(place, (place / "signed.json").read_text()) == "alice"


def test_what_the_python_example_signs_holds(place: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", code],
        cwd=place, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert signer(place, done.stdout) == "alice"


def test_the_settings_are_those_that_there_are(place: Path) -> None:
    from agentd.daemon import config

    section, signers = blocks("toml")
    file = place / "agentd.toml"
    file.write_text(section.replace("/etc/agentd/signers", str(place / "signers")))
    assert config.check(str(file), {}) == []
    (place / "signers/alice.toml").write_text(signers)
    (found,) = Signers(str(place / "signers")).all()
    assert (found.principal, found.scopes) == ("ci", {"run", "read"})
