"""Code in a real sandbox: its state, its answers, its output."""

import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agentd.capability.builtin.python_exec import CAPABILITY
from agentd.model.capability import CallFailed, Example
from agentd.model.errors import InvalidInput

NAME = "python.exec.v1"


@pytest.fixture(scope="session", params=["linux"])
def backend(request: pytest.FixtureRequest) -> str:
    """The process level has no sockets, and without a wall kernels would stay on the host."""
    return str(request.param)


@pytest.fixture
def run(box: Any) -> Callable[..., dict[str, Any]]:
    def call(code: str, **more: Any) -> dict[str, Any]:
        return dict(box.call(NAME, code=code, **more))

    return call


Run = Callable[..., dict[str, Any]]


def shown(value: dict[str, Any]) -> str:
    assert value["status"] == "ok", value
    return str(value["result"]["text/plain"])


@pytest.mark.parametrize("example", CAPABILITY.about.examples, ids=lambda one: one.about)
def test_its_examples_are_true(box: Any, example: Example) -> None:
    asked = dict(example.parameters)
    if "timeout_ms" in asked:
        asked["timeout_ms"] *= 20  # the interpreter starts in it, on a machine that may be busy
    value = box.call(NAME, **asked)
    assert {name: value[name] for name in example.value} == example.value


def test_state_stays_from_call_to_call(run: Run) -> None:
    assert run("x = 6\nimport math")["result"] is None
    value = run("x * math.floor(7.5)")
    assert shown(value) == "42"
    assert value["execution_count"] == 2
    assert value["kernel"] == "builtin"
    assert shown(run("_ + 1")) == "43"
    assert shown(run("def f(): return x\nf()")) == "6"


def test_contexts_have_states_of_their_own(run: Run, box: Any) -> None:
    run("x = 1")
    value = run("x", context="other")
    assert (value["status"], value["error"]["name"]) == ("error", "NameError")
    contexts = box.call(NAME, op="list")["contexts"]
    assert [(one["context"], one["busy"]) for one in contexts] == [
        ("default", False),
        ("other", False),
    ]


def test_a_context_is_begun_anew(run: Run, box: Any) -> None:
    run("x = 1")
    assert run("'x' in globals()", reset=True)["result"]["text/plain"] == "False"
    assert box.call(NAME, op="reset") == {"reset": True}
    assert box.call(NAME, op="reset") == {"reset": False}
    assert box.call(NAME, op="list") == {"contexts": []}
    assert run("1")["execution_count"] == 1


def test_contexts_are_bounded(run: Run) -> None:
    for number in range(16):
        run("", context=f"c{number}")
    with pytest.raises(CallFailed) as caught:
        run("", context="one-more")
    assert caught.value.code == "too_many_contexts"
    assert run("1", context="c3")["status"] == "ok"
    run("import os; os._exit(0)", context="c3")
    assert run("1", context="one-more")["status"] == "ok"


def test_an_exception_shows_the_callers_lines_alone(run: Run) -> None:
    run("def f(n):\n    return 1 / n")
    value = run("print('before')\nf(0)")
    assert (value["status"], value["stdout"], value["result"]) == ("error", "before\n", None)
    error = value["error"]
    assert (error["name"], error["value"]) == ("ZeroDivisionError", "division by zero")
    assert "return 1 / n" in error["traceback"]
    assert '"<cell 2>", line 2' in error["traceback"]
    assert "agentd" not in error["traceback"]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def f(:", "SyntaxError"),
        ("x = \0", "SyntaxError"),
        ("return 1", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("def f(): f()\nf()", "RecursionError"),
        ("input('? ')", "EOFError"),
        ("class E(Exception):\n  def __str__(self): raise ValueError\nraise E", "E"),
        ("raise type('E' * 1000, (BaseException,), {})('v' * 100000)", "E" * 200),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
    ],
)
def test_every_exception_is_an_answer(run: Run, code: str, name: str) -> None:
    value = run(code)
    assert (value["status"], value["error"]["name"]) == ("error", name)
    assert len(value["error"]["value"]) <= 4096
    assert shown(run("1 + 1")) == "2"


def test_await_at_the_top_keeps_its_loop(run: Run) -> None:
    run("import asyncio\nasync def f(): return asyncio.get_running_loop()")
    run("one = await f()\ntask = asyncio.ensure_future(asyncio.sleep(0, 'done'))")
    assert shown(run("one is await f(), await task")) == "(True, 'done')"
    assert shown(run("asyncio.run(asyncio.sleep(0, 'own'))")) == "'own'"


def test_output_comes_from_all_that_write(run: Run) -> None:
    code = (
        "import os, subprocess, sys\n"
        "print('print'); print('error', file=sys.stderr)\n"
        "os.write(1, b'raw\\n')\n"
        "subprocess.run(['sh', '-c', 'echo child; echo childerr >&2'])\n"
        "sys.stdout.write('no newline')"
    )
    value = run(code)
    assert value["stdout"] == "print\nraw\nchild\nno newline"
    assert value["stderr"] == "error\nchilderr\n"


def test_output_comes_as_it_is_written(box: Any) -> None:
    """The code goes on when the first line has been heard, and not before."""
    heard: list[bytes] = []

    def emit(kind: str, data: bytes) -> None:
        if kind == "stdout" and not heard:
            box.put("go", b"")
        heard.append(data)

    code = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\n'on'"
    value = box.outcome(NAME, emit, code=code, timeout_ms=20000).value
    assert shown(value) == "'on'"
    assert b"".join(heard) == b"first\n"


def test_what_a_child_writes_later_comes_with_the_next_call(run: Run) -> None:
    script = "while ! test -e go; do :; done; echo late"
    code = f"import subprocess\np = subprocess.Popen(['sh', '-c', '{script}'])"
    assert run(code)["stdout"] == ""
    assert run("open('go', 'w').close(); p.wait()")["stdout"] == "late\n"


def test_output_is_bounded_and_the_code_goes_on(run: Run) -> None:
    value = run("print('x' * 3_000_000)\n'end'", max_output=1000)
    assert (value["stdout"], value["truncated"]) == ("x" * 1000, True)
    assert shown(value) == "'end'"
    value = run("print('x' * 3_000_000)", max_output=4 << 20)
    assert (len(value["stdout"]), value["truncated"]) == (3_000_001, False)


def test_a_value_shows_in_its_richest_forms(run: Run) -> None:
    code = """
class Rich:
    def __repr__(self): return "rich"
    def _repr_html_(self): return "<b>rich</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"a": [1]}
    def _repr_svg_(self): raise ValueError
    def _repr_latex_(self): return None
class Bundle:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/markdown": "*b*", "application/x": object()}, {}
Rich()"""
    found = run(code)["result"]
    assert json.loads(found.pop("application/json")) == {"a": [1]}
    assert base64.b64decode(found.pop("image/png")) == b"\x89PNG"
    assert found == {"text/plain": "rich", "text/html": "<b>rich</b>"}
    assert run("Bundle()")["result"]["text/markdown"] == "*b*"
    assert set(run("Rich")["result"]) == {"text/plain"}


def test_a_form_of_too_many_bytes_is_left_out_and_the_state_stays(run: Run) -> None:
    """Bytes and not characters: one may be written with twelve."""
    code = (
        "class Wide:\n  def __repr__(self): return 'wide'\n"
        "  def _repr_html_(self): return '\u4e2d' * 3_000_000\nx = 5\n"
    )
    value = run(code + "Wide()")
    assert (value["status"], value["reset"], value["error"]) == ("ok", False, None)
    assert value["result"] == {"text/plain": "wide"}
    assert run("display(Wide())")["displays"] == [{"text/plain": "wide"}]
    assert shown(run("x")) == "5"


def test_values_are_displayed_in_between(box: Any) -> None:
    heard: list[tuple[str, bytes]] = []
    code = "for n in range(2): display(n)\nNone"
    value = box.outcome(NAME, lambda *piece: heard.append(piece), code=code).value
    assert value["displays"] == [{"text/plain": "0"}, {"text/plain": "1"}]
    assert [json.loads(data)["text/plain"] for kind, data in heard if kind == "display"] == [
        "0",
        "1",
    ]
    value = box.call(NAME, code="for n in range(100): display(n)")
    assert (len(value["displays"]), value["truncated"]) == (64, True)


@pytest.mark.parametrize(
    ("code", "length"),
    [
        ("'x' * 10_000_000", 256 << 10),
        ("class B:\n  def __repr__(self): raise ValueError\nB()", None),
        ("class B:\n  def __repr__(self): return 1\nB()", None),
        ("'\\udc80'", 8),
        ("10 ** 10000", None),
    ],
)
def test_odd_values_show_somehow(run: Run, code: str, length: int | None) -> None:
    text = shown(run(code))
    assert len(text) == length if length else "repr failed" in text


def test_figures_are_shown(run: Run, box: Any) -> None:
    """A module of matplotlib's interface: the real one is not in the image."""
    box.put("matplotlib/__init__.py", "")
    box.put(
        "matplotlib/pyplot.py",
        "open_ = [1]\n"
        "class Figure:\n"
        "    def savefig(self, file, format, bbox_inches): file.write(b'image')\n"
        "def get_fignums(): return list(open_)\n"
        "def figure(number): return Figure()\n"
        "def close(which): open_.clear()\n",
    )
    value = run("import matplotlib.pyplot, os\nos.environ['MPLBACKEND']")
    assert shown(value) == "'agg'"
    assert [base64.b64decode(one["image/png"]) for one in value["displays"]] == [b"image"]
    assert run("1")["displays"] == []


def test_files_of_the_workspace_are_its_modules_and_do_not_break_it(run: Run, box: Any) -> None:
    for name in ("socket", "json", "ast", "struct", "select", "typing", "array", "base64"):
        box.put(f"{name}.py", "raise RuntimeError('shadowed')")
    box.put("mine.py", "value = 5")
    value = run("import mine, os, __main__\nx = 1\nmine.value, os.getcwd() , __main__.x")
    assert shown(value) == "(5, '/workspace', 1)"


def test_four_calls_at_once(run: Run) -> None:
    """Of one new context, by turns; of four contexts, beside each other."""
    values: list[dict[str, Any]] = []

    def work(code: str, context: str) -> None:
        values.append(run(code, context=context))

    def together(calls: list[tuple[str, str]]) -> None:
        threads = [threading.Thread(target=work, args=call) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    together([("n = globals().get('n', 0) + 1\nn", "same")] * 4)
    assert sorted(value["execution_count"] for value in values) == [1, 2, 3, 4]
    assert sorted(shown(value) for value in values) == ["1", "2", "3", "4"]
    values.clear()
    # Each waits for the others: by turns they would not end.
    code = (
        "import os, time\nopen('here-{}', 'w').close()\n"
        "while len([f for f in os.listdir() if f.startswith('here-')]) < 4: time.sleep(0.01)"
    )
    together([(code.format(number), f"c{number}") for number in range(4)])
    assert [value["status"] for value in values] == ["ok"] * 4


@pytest.mark.parametrize("context", ["", "../x", "a/b", "a b", "x" * 49, ".x"])
def test_a_context_that_is_no_name_is_refused(run: Run, context: str) -> None:
    with pytest.raises(InvalidInput):
        run("1", context=context)


def test_another_users_directory_is_not_used(run: Run, box: Any) -> None:
    box.sh("mkdir -m 755 /tmp/.agentd-python-$(id -u)")
    with pytest.raises(CallFailed) as caught:
        run("1")
    assert caught.value.code == "kernel_failed"


def test_its_directory_is_private(run: Run, box: Any) -> None:
    run("1")
    found = box.sh("stat -c %a /tmp/.agentd-python-$(id -u)").stdout
    assert found == b"700\n"
