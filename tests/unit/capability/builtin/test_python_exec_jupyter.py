"""Where the image has ipykernel, the code runs in Jupyter's own kernel."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAME = "python.exec.v1"
Run = Callable[..., dict[str, Any]]
_INSIDE = "/usr/bin/python3"  # of the linux backend: the host's own


def _version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.check_output([python, "-c", code], text=True).strip()


@pytest.fixture(scope="session")
def packages() -> str:
    """A folder with ipykernel that the sandbox's Python can import."""
    pytest.importorskip("ipykernel")
    if not Path(_INSIDE).exists():
        pytest.skip(f"{_INSIDE} is not there")
    ours, inside = _version(sys.executable), _version(_INSIDE)
    if ours != inside:
        pytest.skip(f"ipykernel is installed for Python {ours}, and {_INSIDE} is {inside}")
    return sysconfig.get_paths()["platlib"]


@pytest.fixture(scope="session", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def box(make_box: Callable[..., Any], packages: str) -> Any:
    return make_box(mounts=[f"{packages}:/packages:ro"], env={"PYTHONPATH": "/packages"})


@pytest.fixture
def run(box: Any) -> Run:
    def call(code: str, **more: Any) -> dict[str, Any]:
        return dict(box.call(NAME, code=code, **more))

    return call


def test_a_session_with_jupyters_kernel(run: Run, box: Any) -> None:
    value = run("x = 6\nprint('hi')\nx * 7")
    assert value["kernel"] == "ipykernel", value["stderr"]
    assert (value["status"], value["stdout"]) == ("ok", "hi\n")
    assert value["result"]["text/plain"] == "42"
    assert run("get_ipython().__class__.__name__")["execution_count"] == 2
    value = run("1 / 0")
    assert (value["status"], value["error"]["name"]) == ("error", "ZeroDivisionError")
    assert "\x1b" not in value["error"]["traceback"]
    assert "1 / 0" in value["error"]["traceback"]
    value = run("import asyncio\nawait asyncio.sleep(0)\n!echo from a shell\ndisplay(x)")
    assert "from a shell" in value["stdout"]
    assert value["displays"] == [{"text/plain": "6"}]
    value = run("import sys, time\nprint('err', file=sys.stderr)\ntime.sleep(100)", timeout_ms=2000)
    assert (value["status"], value["stderr"], value["reset"]) == ("timeout", "err\n", False)
    assert run("x")["result"]["text/plain"] == "6"
    assert run("input()")["error"]["name"] == "StdinNotImplementedError"
    listening = box.sh("cat /proc/net/tcp | tail -n +2").stdout
    assert listening == b"", "a port is open"


def test_jupyters_kernel_that_ends_is_said_and_replaced(run: Run, box: Any) -> None:
    run("x = 5")
    value = run("import os\nos._exit(3)")
    assert (value["status"], value["reset"]) == ("error", True)
    assert value["error"]["name"] == "KernelDied"
    value = run("'x' in globals()")
    assert value["result"]["text/plain"] == "False"
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    value = run(code, timeout_ms=1000)
    assert (value["status"], value["reset"]) == ("timeout", True)
    assert box.call(NAME, op="reset") == {"reset": False}
    box.sh("for i in $(seq 100); do pgrep -f 'ipyk[e]rnel' || exit 0; sleep 0.1; done; exit 1")
