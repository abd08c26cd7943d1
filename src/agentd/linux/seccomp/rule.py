"""The shape of a rule: which calls, with which arguments, get which errno, and why."""

import errno
from typing import NamedTuple

WORD = 0xFFFFFFFF
#: In place of an errno: whoever installed the filter decides, and where nobody can it is ENOSYS.
ASK = -1


class ArgumentMatch(NamedTuple):
    """True when ``arg & mask`` is among ``values`` (``inside``), or is not (``inside=False``).

    With ``above`` the one value is a bound, and true is what is greater, as an unsigned number.
    Only the low 32 bits of an argument are looked at. Every argument named in the rules is an
    int, an unsigned int or flags below bit 32, which the kernel truncates before use: a rule that
    also compared the high half would be passed by setting a bit there.
    """

    argument: int
    name: str
    values: tuple[int, ...]
    mask: int = WORD
    inside: bool = True
    above: bool = False

    def holds(self, arg: int) -> bool:
        word = arg & self.mask
        return word > self.values[0] if self.above else (word in self.values) is self.inside

    def __str__(self) -> str:
        left = self.name if self.mask == WORD else f"{self.name} & {self.mask:#x}"
        if self.above:
            return f"{left} > {self.values[0]:#x}"
        right = ", ".join(f"{value:#x}" for value in self.values)
        return f"{left} {'in' if self.inside else 'not in'} {{{right}}}"


def not_zero(index: int, name: str, mask: int = WORD) -> ArgumentMatch:
    return ArgumentMatch(index, name, (0,), mask, inside=False)


def greater(index: int, name: str, bound: int) -> ArgumentMatch:
    """Compare as unsigned numbers, which is how the kernel takes the sizes that it is used for."""
    return ArgumentMatch(index, name, (bound,), above=True)


class Rule(NamedTuple):
    """Calls that fail with ``code`` when every match of ``when`` holds (none: always)."""

    group: str
    names: str
    why: str
    when: tuple[ArgumentMatch, ...] = ()
    code: int = errno.EPERM

    @property
    def calls(self) -> tuple[str, ...]:
        return tuple(self.names.split())
