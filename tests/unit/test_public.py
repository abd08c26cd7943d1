"""``import agentd``: cheap, whole, completed by ``dir()``, documented, and typed."""

import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import agentd
from agentd import AgentdError, AsyncSandbox, ExecOptions, Sandbox, SandboxOptions
from agentd.model.service import Service

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests/data/user_program.py"
CLASSES = [agentd.Sandbox, agentd.Process, agentd.Files, agentd.Chunk]
CLASSES += [agentd.AsyncSandbox, agentd.AsyncProcess, agentd.AsyncFiles]
CLASSES += [agentd.Client, agentd.AsyncClient]
CLASSES += [agentd.CodeResult, agentd.Result]


def fresh(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout


def test_nothing_is_imported_before_it_is_used() -> None:
    said = "import sys, agentd; dir(agentd); print(*(m for m in sys.modules if 'agentd' in m))"
    loaded = [name for name in fresh(said).split() if not name.startswith("_")]
    assert loaded == ["agentd"]


def test_every_public_name_is_there_and_completed() -> None:
    shown = fresh("import agentd; print(*dir(agentd))").split()
    for name in agentd.__all__:
        assert getattr(agentd, name) is not None
        assert name in shown
    assert agentd.__version__ and "__version__" in shown
    assert {name for name in shown if name[0] != "_"} == set(agentd.__all__)
    with pytest.raises(AttributeError, match="Sandbx"):
        agentd.Sandbx  # noqa: B018


def test_every_error_that_a_caller_may_meet_is_public() -> None:
    for module in ("model.errors", "model.capability", "client.sandbox", "client.http.errors"):
        for name, found in vars(importlib.import_module(f"agentd.{module}")).items():
            if isinstance(found, type) and issubclass(found, AgentdError):
                assert getattr(agentd, name) is found


@pytest.mark.parametrize("kind", CLASSES)
def test_every_public_method_says_what_it_does_and_takes(kind: type) -> None:
    assert kind.__doc__
    for name, member in inspect.getmembers(kind):
        if name.startswith("_") or inspect.ismemberdescriptor(member):
            continue
        assert inspect.getdoc(member), f"{kind.__name__}.{name}"
        if callable(member):
            shown = inspect.signature(member).parameters
            free = [p.name for p in shown.values() if p.kind is p.VAR_KEYWORD]
            assert free == (["more"] if name == "call" else []), f"{kind.__name__}.{name}"


ASYNC = {
    "AsyncNetworkControl": "NetworkControl",
    "AsyncSandbox": "Sandbox",
    "AsyncProcess": "Process",
    "AsyncFiles": "Files",
    "AsyncIterator": "Iterator",
    "AsyncGenerator": "Generator",
}
# What cannot block: iteration that is awaited piece by piece, or a command that begins with that.
AT_ONCE = {"stream", "read_iter", "watch"}


def plain(annotation: object) -> str:
    """An annotation, in the words of the synchronous class."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    for name in ("agentd.client.aio_process", "agentd.client.process", "agentd.client.aio_files"):
        text = text.replace(f"{name}.", "")
    for asynchronous, synchronous in ASYNC.items():
        text = text.replace(asynchronous, synchronous)
    text = text.replace(", None, None]", ", None]")  # a generator's, which nothing is sent to
    return re.sub(r"agentd\.client\.files\.|collections\.abc\.", "", text).strip("'\"")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (agentd.Sandbox, agentd.AsyncSandbox),
        (agentd.Process, agentd.AsyncProcess),
        (agentd.Files, agentd.AsyncFiles),
    ],
)
def test_sync_and_async_are_the_same_methods(one: type, other: type) -> None:
    ours = {name: found for name, found in inspect.getmembers(one) if name[0] != "_"}
    theirs = {name: found for name, found in inspect.getmembers(other) if name[0] != "_"}
    assert set(theirs) - {"aclose"} == set(ours)
    for name, member in ours.items():
        twin = theirs[name]
        if not isinstance(member, property):
            assert inspect.iscoroutinefunction(twin) == (name not in AT_ONCE), name
        first, second = (inspect.signature(getattr(m, "fget", m)) for m in (member, twin))
        assert list(first.parameters) == list(second.parameters), name
        for left, right in zip(first.parameters.values(), second.parameters.values(), strict=True):
            assert (left.kind, left.default) == (right.kind, right.default), f"{name}({left})"
            assert plain(left.annotation) == plain(right.annotation), f"{name}({left})"
        assert plain(first.return_annotation) == plain(second.return_annotation), name


def test_each_noun_of_the_client_has_the_same_methods_for_asyncio() -> None:
    nouns = {name for name in vars(Service) if not name.startswith("_")}
    assert nouns <= set(vars(agentd.Client))
    with agentd.Client("unix:/nowhere.sock") as one:  # nothing is asked of it
        other = agentd.AsyncClient("unix:/nowhere.sock")
        for noun in nouns:
            ours, theirs = getattr(one, noun), getattr(other, noun)
            contract = typing.get_type_hints(getattr(Service, noun).fget)["return"]
            methods = {name for name in vars(contract) if name[0] != "_"}
            assert methods == {name for name in dir(theirs) if name[0] != "_"}
            for name in methods:
                first, second = getattr(contract, name), getattr(type(theirs), name)
                asked = list(inspect.signature(first).parameters)[1:]
                assert (
                    list(inspect.signature(getattr(ours, name)).parameters)[: len(asked)] == asked
                )
                pieces = noun == "files" and name in ("read", "read_tar", "watch")
                pieces = pieces or (noun, name) == ("snapshots", "export")
                is_async = inspect.isasyncgenfunction if pieces else inspect.iscoroutinefunction
                assert is_async(second), f"{noun}.{name}"
                assert inspect.signature(first).parameters == inspect.signature(second).parameters
                assert inspect.getdoc(second), f"{noun}.{name}"


@pytest.mark.parametrize("kind", [Sandbox, AsyncSandbox])
def test_help_shows_and_explains_every_option(kind: type[Sandbox] | type[AsyncSandbox]) -> None:
    create = inspect.signature(kind.create).parameters
    assert set(SandboxOptions.__annotations__) <= set(create)
    told = inspect.getdoc(Sandbox.create) or ""
    for name in SandboxOptions.__annotations__:
        assert f"\n{name} " in told, name
    for method in (kind.run, kind.start, kind.stream):
        assert set(ExecOptions.__annotations__) <= set(inspect.signature(method).parameters)


def test_mypy_knows_the_types_of_a_users_program_and_of_the_page(tmp_path: Path) -> None:
    page = (ROOT / "docs/sdk.md").read_text()
    examples = tmp_path / "examples.py"
    examples.write_text("url: str\n" + "\n".join(re.findall(r"```python\n(.*?)```", page, re.S)))
    words = [sys.executable, "-m", "mypy", "--strict", "--allow-redefinition"]
    words += [str(PROGRAM), str(examples)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_pyright_knows_the_types_of_a_users_program(tmp_path: Path) -> None:
    pytest.importorskip("basedpyright", reason="basedpyright is not installed: uv sync")
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    strict = {
        "include": ["program.py"],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": True,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(strict))
    words = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "-p", "."]
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
