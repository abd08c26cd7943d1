"""A kernel that does nothing: it writes down each call and answers from a script."""

from collections import deque
from collections.abc import Mapping, Sequence

from agentd.linux import abi
from agentd.linux.kernel import Kernel

Answer = int | OSError


class RecordingKernel(Kernel):
    """``calls`` holds ``(name, args)`` of every system call, in order.

    ``script`` maps a call's name to its answers, used up one a call; an OSError is raised, and
    a call with no answer left returns 0. Pointers made by ctypes are recorded as they are.
    """

    def __init__(self, script: Mapping[str, Sequence[Answer]] | None = None) -> None:
        self.calls: list[tuple[str, tuple[object, ...]]] = []
        self._script = {name: deque(answers) for name, answers in (script or {}).items()}

    def syscall(self, number: int, *args: object) -> int:
        name = abi.NAMES.get(number, str(number))
        self.calls.append((name, args))
        answers = self._script.get(name)
        answer = answers.popleft() if answers else 0
        if isinstance(answer, OSError):
            raise answer
        return answer

    def names(self) -> list[str]:
        """The names of the calls so far."""
        return [name for name, _ in self.calls]
