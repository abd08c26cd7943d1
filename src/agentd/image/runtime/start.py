"""What the interpreter of a runtime runs: a module of the agent's, out of the file ``CODE``.

That holds the byte code of nearly all modules, and is read once: as files of their own they would
cost more than half of an agent's start, above all behind gVisor, where each system call costs more.
Imports nothing but what the interpreter has in itself: the rest is in there.
"""

import marshal
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

#: Module -> whether it is a package, and its code object, marshalled.
Code = dict[str, tuple[bool, bytes]]

CODE = "code"


class CodeFinder:
    """Finds modules in ``CODE``, and forgets the bytes of each that it has loaded."""

    def __init__(self, code: Code) -> None:
        self._code = code

    def find_spec(
        self, name: str, _path: "Sequence[str] | None" = None, _target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        found = self._code.get(name)
        if found is None:
            return None
        return ModuleSpec(name, self, is_package=found[0])  # type: ignore[arg-type]  # no Loader

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave that to Python."""

    def exec_module(self, module: "ModuleType") -> None:
        code = self._code.pop(module.__name__)[1]
        exec(marshal.loads(code), module.__dict__)  # noqa: S102, S302  (of our own making)


def install(folder: str) -> None:
    """Let this interpreter have the modules of the runtime in ``folder``. Before the files: what
    is frozen into the interpreter, and what it has in C."""
    with open(f"{folder}/{CODE}", "rb") as file:
        code: Code = marshal.loads(file.read())  # noqa: S302  (verified by the host)
    sys.meta_path.insert(len(sys.meta_path) - 1, CodeFinder(code))


def main() -> None:
    """Run ``main`` of the module that the first argument names, with the others. Behind a colon
    it may say what the program was called by."""
    install(__file__.rpartition("/")[0])
    name, _, called = sys.argv.pop(1).partition(":")
    sys.argv[0] = called or sys.argv[0]
    __import__(name)
    sys.exit(sys.modules[name].main())


if __name__ == "__main__":
    main()
