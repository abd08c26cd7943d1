"""The standard library of the smallest image: some of its modules are left out."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentd.capability import script
from agentd.image import userland
from agentd.model.spec import ExecRequest

NAME = "python.exec.v1"


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PYTHONHOME with what the image builder keeps."""
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    source = Path("/usr/lib") / name
    if not source.exists():
        pytest.skip(f"{source} is not there: the image's modules are of another Python")
    home = tmp_path_factory.mktemp("home")
    top = home / "lib" / name
    for parent, _, files in os.walk(source):
        for file in files:
            inner = os.path.relpath(os.path.join(parent, file), source)
            native = inner.startswith("lib-dynload/") and userland._SMALL_NATIVE.fullmatch(file)
            if native or (file.endswith(".py") and userland._kept(inner, True)):
                (top / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(os.path.join(parent, file), top / inner)
    (top / "lib-dynload").mkdir(exist_ok=True)
    assert not (top / "ssl.py").exists()
    return home


@pytest.fixture(scope="session", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def box(make_box: Callable[..., Any], library: Path) -> Any:
    return make_box(mounts=[f"{library}:/small:ro"], env={"PYTHONHOME": "/small"})


def test_the_kernel_runs_on_it(box: Any) -> None:
    value = box.call(NAME, code="import json, sys\njson.__file__")
    assert value["result"]["text/plain"].startswith("'/small/"), value
    value = box.call(NAME, code="import asyncio\nawait asyncio.sleep(0)\ndisplay(1)\n1 / 0")
    assert value["error"]["name"] == "ZeroDivisionError"
    assert "1 / 0" in value["error"]["traceback"]


def test_the_client_runs_on_it(box: Any) -> None:
    """Without -I, so that it is this library that it imports."""
    asked = {"op": "list", "context": "default", "timeout": 5}
    argv = ("python3", "-S", "-c", script.source("python_client"))
    end = box.inside.execute(ExecRequest(argv=argv, timeout=120), json.dumps(asked).encode())
    assert json.loads(end.stdout) == {"value": {"status": "ok", "contexts": []}}, end.stderr
