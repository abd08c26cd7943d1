"""Whether a backend can be used here, and if not, exactly why and its fix."""

import msgspec


class Blocker(msgspec.Struct, frozen=True):
    """``what`` stands in the way; ``fix`` is a command or a file to write, ready to paste."""

    what: str
    fix: str


class Availability(msgspec.Struct, frozen=True):
    usable: bool
    blockers: tuple[Blocker, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, blockers: list[Blocker], notes: list[str]) -> "Availability":
        return cls(not blockers, tuple(blockers), tuple(notes))
