"""The one-file agent: reproducible, alone, and it runs."""

import hashlib
import json
import os
import socket
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.guest import bundle

PYTHONS = [path for path in ("/usr/bin/python3.11", "/usr/bin/python3.13") if os.path.exists(path)]
REQUEST = b'{"command":"echo","args":["hi"]}\n'
REPLY = b'{"exit_code":0,"stdout":"aGkK","stderr":"","error":null}\n'


@pytest.fixture(scope="module")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "agentd-guest.pyz"
    bundle.build(str(path))
    return path


def test_two_builds_are_equal_byte_for_byte(tmp_path: Path) -> None:
    one, two = tmp_path / "one.pyz", tmp_path / "two.pyz"
    digests = {bundle.build(str(one)), bundle.build(str(two))}
    assert digests == {hashlib.sha256(one.read_bytes()).hexdigest()}
    assert one.read_bytes() == two.read_bytes()
    assert sorted(tmp_path.iterdir()) == [one, two]


def test_the_order_of_the_files_does_not_matter() -> None:
    files = {"b.py": b"2", "a.py": b"1"}
    assert bundle.pack(files) == bundle.pack(dict(reversed(files.items())))


def test_it_is_executable_and_finds_its_interpreter(pyz: Path) -> None:
    assert pyz.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert pyz.stat().st_mode & 0o777 == 0o755


def test_it_holds_the_two_rooms_and_nothing_else(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
    assert names == sorted(names)
    top = {"__main__.py", "agentd/__init__.py", "agentd/_version.py"}
    rest = set(names) - top
    assert top < set(names)
    assert all(name.startswith(("agentd/guest/", "agentd/linux/")) for name in rest)
    assert all(name.endswith(".py") for name in names)
    assert {"agentd/guest/main.py", "agentd/linux/kernel.py"} < rest


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError):
        bundle.build(str(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("python", PYTHONS)
def test_it_serves_on_stdio(pyz: Path, python: str) -> None:
    command = [python, "-I", "-S", str(pyz), "--listen", "stdio"]
    done = subprocess.run(command, input=REQUEST, capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, REPLY)


@pytest.fixture(params=PYTHONS)
def listening(request: pytest.FixtureRequest, pyz: Path, tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "agent.sock")
    command = [request.param, "-I", "-S", str(pyz), "--listen", f"unix:{path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"listening on unix:" in process.stderr.readline()
        try:
            yield path
        finally:
            process.terminate()
    assert not os.path.exists(path)


def test_it_serves_on_a_unix_socket(listening: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(120)
        client.connect(listening)
        client.sendall(REQUEST)
        with client.makefile("rb") as replies:
            assert replies.readline() == REPLY


@pytest.mark.parametrize("python", PYTHONS)
def test_it_imports_nothing_but_the_standard_library(pyz: Path, python: str) -> None:
    code = (
        "import sys, json, pkgutil, importlib; sys.path.insert(0, sys.argv[1]);"
        "import agentd.guest, agentd.linux;"
        "names = [m.name for p in (agentd.guest, agentd.linux)"
        " for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.')];"
        "[importlib.import_module(n) for n in names if not n.endswith('.__main__')];"
        "print(json.dumps([n.split('.')[0] for n in sys.modules if n in sys.modules]),"
        " json.dumps(sorted(sys.stdlib_module_names)), sep='\\n')"
    )
    command = [python, "-I", "-S", "-c", code, str(pyz)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    loaded, standard = map(json.loads, done.stdout.splitlines())
    assert set(loaded) - set(standard) == {"__main__", "agentd"} - set(standard)
