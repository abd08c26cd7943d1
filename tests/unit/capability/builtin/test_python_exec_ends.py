"""Code that does not want to end, and code that ends more than itself."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from agentd.capability.call import CallContext
from agentd.model.capability import CallFailed

NAME = "python.exec.v1"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(box: Any) -> Run:
    def call(code: str, **more: Any) -> dict[str, Any]:
        return dict(box.call(NAME, code=code, **more))

    return call


def in_background(run: Run, code: str, **more: Any) -> tuple[threading.Thread, list[Any]]:
    got: list[Any] = []

    def work() -> None:
        try:
            got.append(run(code, **more))
        except CallFailed as error:
            got.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, got


def until(check: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not check():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.01)


def is_busy(box: Any) -> bool:
    return any(one["busy"] for one in box.call(NAME, op="list")["contexts"])


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time\ntime.sleep(100)",
        "import asyncio\nawait asyncio.sleep(100)",
        "async def f():\n  while True: pass\nawait f()",
        "import subprocess\nsubprocess.run(['sleep', '100'])",
        "class S:\n  def __repr__(self):\n    while True: pass\nS()",
        "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E",
        "while True: print('flood' * 1000)",
        "while True: display(1)",
        "while True: display('x' * 250_000)",
        "import threading\nthreading.Event().wait()",
    ],
)
def test_code_that_takes_too_long_is_interrupted_and_its_state_stays(run: Run, code: str) -> None:
    run("x = 5")
    value = run(code, timeout_ms=400)
    assert (value["reset"], value["status"] in {"timeout", "error"}) == (False, True), value
    assert run("x")["result"] == {"text/plain": "5"}


# Python 3.11 and 3.12 do not catch what interrupts a loop that is the first statement of a try.
@pytest.mark.parametrize(
    "code",
    [
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass",
        "while True:\n  try:\n    y = 1\n    while True: pass\n  except BaseException: pass",
        "import signal as s\ns.pthread_sigmask(s.SIG_BLOCK, [s.SIGINT])\nwhile True: pass",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_code_that_ignores_interrupts_is_killed_and_that_is_said(run: Run, code: str) -> None:
    run("x = 5")
    value = run("print('said')\n" + code, timeout_ms=1000)
    assert (value["status"], value["reset"]) == ("timeout", True)
    assert value["stdout"] == "said\n"
    assert run("'x' in globals()")["result"] == {"text/plain": "False"}


def test_another_caller_interrupts(run: Run, box: Any) -> None:
    run("x = 5")
    assert box.call(NAME, op="interrupt") == {"interrupted": False}
    thread, got = in_background(run, "print('on')\nwhile True: pass", timeout_ms=30000)
    until(lambda: is_busy(box))
    until(lambda: bool(box.call(NAME, op="interrupt")) and not thread.is_alive())
    thread.join()
    assert got[0]["status"] == "interrupted"
    assert got[0]["error"]["name"] == "KeyboardInterrupt"
    assert run("x")["result"] == {"text/plain": "5"}


def test_an_interrupt_in_between_does_nothing(run: Run, box: Any) -> None:
    pid = int(run("import os; os.getpid()")["result"]["text/plain"])
    box.sh(f"for i in 1 2 3; do kill -INT {pid}; done")
    assert run("os.getpid()")["result"]["text/plain"] == str(pid)


# Of a kernel whose code runs none of them is taken: its queue is full.
_LOOKS = """\
import glob, socket
(place,) = glob.glob("/tmp/.agentd-python-*/default.sock")
for _ in range(1000):
    with socket.socket(socket.AF_UNIX) as looking:
        looking.setblocking(False)
        try:
            looking.connect(place)
        except BlockingIOError:
            break
"""


def test_code_is_interrupted_and_reset_however_many_have_looked_at_it(run: Run, box: Any) -> None:
    box.put("looks.py", _LOOKS)
    for op, ended in (("interrupt", "interrupted"), ("reset", "error")):
        thread, got = in_background(run, "while True: pass", timeout_ms=600_000)
        until(lambda: is_busy(box))
        box.sh("python3 looks.py")
        assert is_busy(box)
        until(lambda op=op, thread=thread: bool(box.call(NAME, op=op)) and not thread.is_alive())  # type: ignore[misc]
        thread.join()
        assert got[0]["status"] == ended
    assert run("1")["result"] == {"text/plain": "1"}


def test_another_caller_resets(run: Run, box: Any) -> None:
    thread, got = in_background(run, "while True: pass", timeout_ms=30000)
    until(lambda: is_busy(box))
    until(lambda: bool(box.call(NAME, op="reset")["reset"]))
    thread.join()
    assert (got[0]["status"], got[0]["reset"]) == ("error", True)
    assert got[0]["error"]["name"] == "KernelDied"


def test_who_waits_too_long_is_told(run: Run, box: Any) -> None:
    thread, got = in_background(run, "while True: pass", timeout_ms=30000)
    until(lambda: is_busy(box))
    with pytest.raises(CallFailed) as caught:
        run("1", timeout_ms=200)
    assert caught.value.code == "busy"
    until(lambda: bool(box.call(NAME, op="interrupt")) and not thread.is_alive())
    thread.join()
    assert got[0]["status"] == "interrupted"


def test_code_whose_caller_has_gone_is_interrupted(run: Run, box: Any) -> None:
    """The client in the sandbox is killed, as the daemon does when a call is given up."""
    run("x = 5")
    code = "print('on')\ntry:\n  y = 1\n  while True: pass\nfinally: x = 6; open('gone', 'w')"
    thread, _ = in_background(run, code, timeout_ms=30000)
    until(lambda: is_busy(box))
    box.sh("pkill -9 -f '^python3 -I -S -c'")
    thread.join()
    # By itself, not when the next caller comes.
    box.sh("for i in $(seq 200); do test -e gone && exit 0; sleep 0.1; done; exit 1")
    assert run("x", timeout_ms=20000)["result"] == {"text/plain": "6"}


def test_a_call_that_is_given_up_does_not_keep_the_context(run: Run, box: Any) -> None:
    class GaveUp(Exception):
        pass

    def emit(kind: str, data: bytes) -> None:
        raise GaveUp

    registered = box.registry.get(NAME)
    parameters = {"code": "print('on')\nwhile True: pass", "timeout_ms": 30000}
    call = CallContext.of(registered.about, parameters, request_id="r", emit=emit)
    with pytest.raises(GaveUp):
        registered.run(call, box.inside)
    assert run("'x' in globals()", timeout_ms=20000)["status"] == "ok"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
        "import os, signal\nos.killpg(0, signal.SIGTERM)",
        "import os\nos.closerange(3, 1000)",
        "import ctypes\nctypes.string_at(0)",
        "import os\nif os.fork(): os._exit(0)\nimport time; time.sleep(1000)",
    ],
)
def test_a_kernel_that_ends_is_said_and_replaced(run: Run, code: str) -> None:
    run("x = 5")
    value = run("print('last words', flush=True)\n" + code)
    assert (value["status"], value["reset"]) == ("error", True)
    assert value["error"]["name"] == "KernelDied"
    assert value["stdout"].startswith("last words\n")
    assert run("'x' in globals()")["result"] == {"text/plain": "False"}


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.close(1); os.close(2); os.close(0)",
        "import sys\nsys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
        "import sys\nsys.stdout = sys.stderr = None",
        "import os\nos.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)",
        "import signal\nsignal.signal(signal.SIGPIPE, signal.SIG_DFL)",
        "import sys\nsys.modules.clear()",
        "import linecache, traceback\nlinecache.cache = traceback.TracebackException = None",
        "import os\nos.chdir('/tmp')",
        "import sys\nsys.setrecursionlimit(50)",
    ],
)
def test_code_that_breaks_its_surroundings_is_heard_afterwards(run: Run, code: str) -> None:
    assert not run(code)["reset"]
    value = run("print('heard')\n1")
    assert (value["stdout"], value["result"], value["reset"]) == (
        "heard\n",
        {"text/plain": "1"},
        False,
    )


def test_a_forked_child_is_not_a_second_kernel(run: Run) -> None:
    code = "import os\nx = 0\npid = os.fork()\nprint(pid, flush=True)\npid"
    value = run(code)
    assert value["status"] == "ok"
    assert run("os.waitpid(pid, 0)[1]")["result"] == {"text/plain": "0"}
    assert run("x += 1\nx")["result"] == {"text/plain": "1"}
    code = "pid = os.fork()\nif pid == 0: raise ValueError\nos.waitpid(pid, 0)[1] >> 8"
    assert run(code)["result"] == {"text/plain": "1"}


def test_floods_of_all_kinds_are_bounded(run: Run) -> None:
    code = (
        "import os, sys, threading\n"
        "def flood(fd):\n  for _ in range(3000): os.write(fd, b'y' * 4096)\n"
        "t = [threading.Thread(target=flood, args=(n,)) for n in (1, 2)]\n"
        "[x.start() for x in t]; [x.join() for x in t]\n"
        "display('z' * 5_000_000)\n'w' * 5_000_000"
    )
    value = run(code, max_output=100_000)
    assert value["status"] == "ok"
    assert (len(value["stdout"]), len(value["stderr"]), value["truncated"]) == (
        100_000,
        100_000,
        True,
    )
    assert len(value["result"]["text/plain"]) <= 256 << 10


def test_a_fork_bomb_ends_with_its_context(run: Run) -> None:
    code = "import os, time\nfor _ in range(40):\n  if os.fork() == 0: time.sleep(1000)"
    assert run(code)["status"] in {"ok", "error"}
    assert run("1", reset=True)["result"] == {"text/plain": "1"}
    count = "len([p for p in __import__('os').listdir('/proc') if p.isdigit()])"
    assert int(run(count)["result"]["text/plain"]) < 20
