"""docs/sdk.md: its examples run and are typed, and every public name and method is in it."""

import inspect
import re
import typing
from pathlib import Path

import pytest
from tests.conftest import OrdinaryUser

import agentd
from agentd.model.service import Service

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/sdk.md").read_text()
BLOCKS = re.findall(r"(<!-- [^\n]*type checker[^\n]* -->\n)?```python\n(.*?)```", PAGE, re.DOTALL)
CLASSES = (agentd.Sandbox, agentd.Process, agentd.Files, agentd.Result, agentd.CodeResult)
WITH_DAEMON = """
import subprocess, sys, tempfile
folder = tempfile.mkdtemp()
url = f"unix:{folder}/agentd.sock"
words = [sys.executable, "-m", "agentd", "serve", "--listen", url, "--state", f"{folder}/state"]
daemon = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
daemon.stdout.readline()
try:
    exec(sys.stdin.read())
finally:
    daemon.terminate()
    daemon.communicate(timeout=60)
"""


def test_every_public_name_and_method_is_in_it() -> None:
    words = set(re.findall(r"\w+", PAGE))
    names = [*agentd.__all__]
    for kind in CLASSES:
        names += [name for name, _ in inspect.getmembers(kind) if not name.startswith("_")]
    assert [name for name in names if name not in words] == []


def test_every_noun_of_the_client_and_its_methods_are_in_the_table() -> None:
    for noun in (name for name in vars(Service) if not name.startswith("_")):
        (row,) = re.findall(rf"^\| `{noun}` \| (.*?) \|", PAGE, re.MULTILINE)
        contract = typing.get_type_hints(getattr(Service, noun).fget)["return"]
        methods = {name for name in vars(contract) if name[0] != "_"}
        assert set(re.findall(r"`(\w+)", row)) == methods, noun


@pytest.mark.timeout(900)
def test_its_examples_run_as_an_ordinary_user(as_user: OrdinaryUser) -> None:
    ran = [code for marked, code in BLOCKS if not marked]
    assert len(ran) == len(BLOCKS) - 1
    (as_user.home / "program").write_text("\n".join(ran))
    start = WITH_DAEMON.replace("sys.stdin.read()", "open('program').read(), {'url': url}")
    done = as_user.python("-W", "error", "-c", start, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    said = done.stdout.decode()
    for wanted in ("hello\nsandbox\n", "failed 3 None", "line 3", "True 12.566370614359172 area"):
        assert wanted in said
    for wanted in ("('D a.txt', 'A b.txt')", "['two\\n']", "['one\\n', 'two\\n']", "Unreachable"):
        assert wanted in said
