"""Byte code for the guest, made by the guest's own Python on this machine.

Its loader and libraries come from the same packages, so the host's Python and libc do not matter.
"""

import json
import os
import tempfile

from agentd.linux import programs
from agentd.model.errors import Unavailable

_SECONDS = 600
# Hash-based and unchecked (PEP 552): no times in it, and no source is looked for. One process
# compiles all, in a fixed order: what marshal writes depends on which strings were seen before.
_SCRIPT = """
import importlib._bootstrap_external as external, json, marshal, sys
from _imp import source_hash
with open(sys.argv[1], encoding="utf-8") as file:
    jobs = json.load(file)
done = []
for source, name, target in jobs:
    with open(source, "rb") as file:
        text = file.read()
    try:
        code = compile(text, name, "exec", dont_inherit=True, optimize=int(sys.argv[2]))
    except SyntaxError:
        continue
    mark = source_hash(external._RAW_MAGIC_NUMBER, text)
    with open(target, "wb") as file:
        file.write(external._code_to_hash_pyc(code, mark, False))
    done.append(name)
print(json.dumps(done))
"""


class Python:
    """The interpreter of a tree of unpacked packages, run in place."""

    def __init__(self, tree: str, version: str) -> None:
        """``tree`` holds usr/bin and usr/lib; ``version`` is as "3.13"."""
        self._tree = tree
        self._version = version

    def compile(self, sources: dict[str, bytes], optimize: int = 0) -> dict[str, bytes]:
        """Return byte code by path in the guest; what is no valid Python is left out.

        Raises Unavailable when the interpreter does not run here.
        """
        with tempfile.TemporaryDirectory(prefix="agentd-compile-") as folder:
            jobs = []
            for index, path in enumerate(sorted(sources)):
                source = os.path.join(folder, f"{index}.py")
                with open(source, "wb") as file:
                    file.write(sources[path])
                jobs.append((source, path, source + "c"))
            listing = os.path.join(folder, "jobs")
            with open(listing, "w", encoding="utf-8") as text:
                json.dump(jobs, text)
            done = set(json.loads(self._run(["-c", _SCRIPT, listing, str(optimize)])))
            return {path: _read(target) for _, path, target in jobs if path in done}

    def version(self) -> str:
        """Return it, as "3.13.5"."""
        return self._run(["-c", "import platform; print(platform.python_version())"]).strip()

    def _run(self, words: list[str]) -> str:
        libraries = os.path.join(self._tree, "usr/lib/x86_64-linux-gnu")
        loader = os.path.join(libraries, "ld-linux-x86-64.so.2")
        program = os.path.join(self._tree, f"usr/bin/python{self._version}")
        argv = [loader, "--library-path", libraries, program, "-S", "-s", *words]
        env = {
            "PYTHONHOME": os.path.join(self._tree, "usr"),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LC_ALL": "C.UTF-8",
        }
        try:
            return programs.answer(argv, _SECONDS, env)
        except OSError as error:
            raise Unavailable(
                "the guest's Python does not run on this machine",
                cause=str(error),
                remediation="build on an x86-64 machine, with a writable and executable /tmp",
            ) from error


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
