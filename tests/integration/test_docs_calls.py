"""docs/capabilities.md and docs/audit.md: what they show of calls and receipts happens."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def env() -> Iterator[dict[str, str]]:
    """No daemon, and a state directory of its own."""
    with tempfile.TemporaryDirectory(prefix="agentd-") as folder:
        yield {
            **{name: value for name, value in os.environ.items() if name != "AGENTD_URL"},
            "PATH": f"{SCRIPTS}:/usr/bin:/bin",
            "XDG_RUNTIME_DIR": folder,
            "AGENTD_DAEMON__STATE": folder,
            "AGENTD_CONFIG": "",
            "NO_COLOR": "1",
        }


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


def shell(script: str, env: dict[str, str], folder: str = "") -> str:
    done = subprocess.run(
        ["bash", "-ec", script], capture_output=True, text=True, env=env, timeout=120, check=False,
        cwd=folder or env["AGENTD_DAEMON__STATE"],
    )  # fmt: skip
    assert done.returncode in (0, 125), done.stderr
    return done.stdout + done.stderr


def test_the_python_example_of_calls_prints_what_it_says(env: dict[str, str]) -> None:
    page = (DOCS / "capabilities.md").read_text()
    ((code, printed),) = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", page, re.S)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (printed, "")


def test_a_policy_is_named_for_calls_without_a_daemon(env: dict[str, str]) -> None:
    (console,) = blocks("capabilities.md", "console")
    command, _, said = console.removeprefix("$ ").partition("\n")
    found = shell(command, env)
    assert found == said.replace("uid:1000", f"uid:{os.geteuid()}")


def test_a_receipt_is_shown_and_verified_as_the_page_does(env: dict[str, str]) -> None:
    answer = json.loads(shell("agentd call fs.list.v1 --json", env))
    (script,) = [text for text in blocks("audit.md", "sh") if "receipt verify" in text]
    found = shell(script.replace("req-0123456789abcdef", answer["receipt"]), env)
    assert "the signature holds: receipt.pub signed this" in found
    head = re.search(r"^audit +(\d+:[0-9a-f]{64})$", found, re.M)
    assert head is not None
    verified = shell(f"agentd audit verify --head {head[1]}", env)
    assert "ok: every record is there and unchanged; its end included" in verified
    assert "of calls without a daemon" in verified


def test_what_a_command_calls_without_a_daemon_is_learned(env: dict[str, str]) -> None:
    script = (
        'agentd policy learn --out learned -- agentd call fs.list.v1 --params \'{"path": "."}\''
    )
    assert "learned: 1 call seen, 5 tests" in shell(script, env)
    assert "5 passed, 0 failed" in shell("agentd policy test learned", env)
    assert "nothing to learn" not in shell("agentd policy check learned", env)
    allowed = shell('AGENTD_POLICY="$PWD/learned" agentd call fs.list.v1', env)
    assert json.loads(allowed)["entries"] == []
    denied = shell(
        'AGENTD_POLICY="$PWD/learned" agentd call fs.list.v1 --params \'{"path": "/"}\'', env
    )
    assert "learned.unseen" in denied


def test_the_async_sdk_calls_too(env: dict[str, str]) -> None:
    code = """
import asyncio
from agentd import AsyncSandbox

async def main():
    async with await AsyncSandbox.create() as sb:
        pieces = []
        given = {"command": "echo"}
        found = await sb.call("shell.exec.v1", given, args=["hi"], emit=lambda *p: pieces.append(p))
        print(found.value["stdout"], pieces)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("hi\n [('stdout', b'hi\\n')]\n", "")
