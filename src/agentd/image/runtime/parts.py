"""Which files a runtime consists of, found out by the interpreter itself.

lib/              its libraries, and its loader by the name that ps(1) shows of the agent; in
                  pythonX.Y what of the standard library the interpreter loads by itself, as byte
                  code, and the modules in C in lib-dynload
bin/python3       the interpreter, without what only debuggers read
code              the byte code of all other modules, the agent's among them
start.pyc         what reads that, and runs the agent
agentd-guest      starts it where there is a shell
"""

import ast
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import FrozenImporter

from agentd.guest import bundle
from agentd.image.runtime import elf, start
from agentd.linux import programs, python
from agentd.model.errors import Unavailable

LAUNCHER = "agentd-guest"
LOADER, PYTHON, START = "lib/agentd-guest", "bin/python3", "start.py"
# What of the agent's rooms runs on hosts only.
_LINUX_ON_HOSTS = (
    *("container", "disk", "kvm", "kvm_guest", "locks", "probe", "programs", "runtime_dir"),
    "subids",
)
_ON_HOSTS = {"__main__", "agentd.guest.bundle", "agentd.linux.seccomp.disassembler"}
_ON_HOSTS.update(f"agentd.linux.{name}" for name in _LINUX_ON_HOSTS)
# Imported by functions that only hosts call.
_LATE_ON_HOSTS = {"hashlib", "subprocess"}
_SECONDS = 300
_PACKAGE_ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))
# It may be called by a link, of another name. dash and others put those variables into their
# environment.
_LAUNCHER = f"""\
#!/bin/sh
case $0 in */*) at=$0 ;; *) at=./$0 ;; esac
while [ -h "$at" ] && to=$(readlink "$at"); do
    case $to in /*) at=$to ;; *) at=${{at%/*}}/$to ;; esac
done
here=${{at%/*}}
unset PWD OLDPWD SHLVL _
exec "$here/{LOADER}" --inhibit-cache --library-path "$here/lib" "$here/{PYTHON}" -I -S -E \\
    "$here/{START}c" "agentd.guest.main:$0" "$@"
"""


@dataclass(frozen=True)
class Inventory:
    """What the agent loads on this host: names in the runtime -> paths. ``loader`` is one of the
    libraries' names, ``library`` where the interpreter looks for its own modules."""

    executable: str
    loader: str
    version: str
    library: str
    modules: dict[str, str]
    extensions: dict[str, str]
    libraries: dict[str, str]


@dataclass(frozen=True)
class RuntimeFile:
    """A file of a runtime as it comes from the host: ``path`` is where it is, or None."""

    data: bytes
    path: str | None = None
    executable: bool = False


def inventory() -> Inventory:
    """Run this Python anew, with the agent. Raises Unavailable."""
    code = (
        f"import sys; sys.path.insert(0, {_PACKAGE_ROOT!r}); "
        "from agentd.image.runtime.inventory import main; main()"
    )
    words = ["-c", code, *sorted(_needed())]
    found = Inventory(**json.loads(run_python([sys.executable], words)))
    if not found.loader:
        raise Unavailable(
            f"{found.executable} is not linked dynamically: it cannot be taken along",
            remediation="run agentd with a Python of a distribution, pyenv or uv",
        )
    if found.version != platform.python_version():
        raise Unavailable(
            f"{sys.executable} has been replaced: it is Python {found.version} now",
            remediation="start agentd anew",
        )
    return found


def archived(name: str, library: str) -> str:
    """Return the module that a file of byte code is, where it goes into ``start.CODE``; empty
    otherwise: what the interpreter loads before that is read, or has in itself, has a file of its
    own."""
    inner = name.removeprefix(f"{library}/")
    module = _module(inner)
    if not name.endswith(".py") or name == START or module.partition(".")[0] == "encodings":
        return ""
    return "" if FrozenImporter.find_spec(module) is not None else module


def _agent() -> dict[str, bytes]:
    """File -> content."""
    sources = bundle.sources()
    return {name: data for name, data in sources.items() if _module(name) not in _ON_HOSTS}


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _needed() -> set[str]:
    """The agent's modules, and what they import, at once or when they are called."""
    agent = _agent()
    imported: set[str] = set()
    for data in agent.values():
        for node in ast.walk(ast.parse(data)):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module)
    others = {name for name in imported if name.partition(".")[0] != "agentd"}
    return {_module(name) for name in agent} | others - _LATE_ON_HOSTS


def run_python(interpreter: list[str], words: list[str]) -> str:
    """Return what it prints, alone and with next to no environment. Raises Unavailable."""
    argv = [*interpreter, *python.ISOLATED, *words]
    try:
        return programs.answer(argv, _SECONDS, python.environment())
    except OSError as error:
        raise Unavailable(
            f"{interpreter[-1]} does not run by itself",
            cause=str(error),
            remediation="run agentd with a Python of a distribution, pyenv or uv, on a machine"
            " whose cache folder is not mounted noexec",
        ) from error


def parts(found: Inventory) -> Iterator[tuple[str, RuntimeFile]]:
    """Name in the runtime and content, each as it is on the host. Raises OSError."""
    yield PYTHON, _read(found.executable, executable=True)
    for name, path in sorted(found.libraries.items()):
        loader = name == found.loader
        yield (LOADER if loader else f"lib/{name}"), _read(path, executable=loader)
    for name, path in sorted(found.extensions.items()):
        yield f"{found.library}/lib-dynload/{name}", _read(path)
    for name, path in sorted(found.modules.items()):
        yield f"{found.library}/{name}", _read(path)
    for name, data in sorted(_agent().items()):
        yield name, RuntimeFile(data, os.path.join(_PACKAGE_ROOT, name))
    yield START, _read(start.__file__)
    yield LAUNCHER, RuntimeFile(_LAUNCHER.encode(), executable=True)


def cut(name: str, data: bytes) -> bytes:
    """Return a program or library as a runtime has it."""
    return elf.without_preload(elf.slim(data)) if name == LOADER else elf.slim(data)


def _read(path: str, *, executable: bool = False) -> RuntimeFile:
    with open(path, "rb") as file:
        return RuntimeFile(file.read(), path, executable)
