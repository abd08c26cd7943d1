"""What may be asked of a running command: checked before anybody is asked."""

from agentd.model.errors import InvalidInput

MAX_SIGNAL = 64
MAX_SIDE = 65535
TARGETS = ("group", "sandbox")


def check_signal(number: int, target: str = "group") -> bool:
    """Return whether there is something to send: 0 only asks whether the command runs, as kill(2)
    has it.

    Raises InvalidInput.
    """
    whole = isinstance(number, int) and not isinstance(number, bool)
    if not (whole and 0 <= number <= MAX_SIGNAL):
        raise InvalidInput(
            f"there is no signal {number!r}", remediation=f"give one from 1 to {MAX_SIGNAL}, or 0"
        )
    if target not in TARGETS:
        raise InvalidInput(
            f"a signal cannot go to {target[:64]!r}", remediation="write group, or sandbox"
        )
    return number > 0


def check_window(rows: int, cols: int) -> None:
    """Raises InvalidInput."""
    for name, side in (("rows", rows), ("cols", cols)):
        whole = isinstance(side, int) and not isinstance(side, bool)
        if not (whole and 1 <= side <= MAX_SIDE):
            raise InvalidInput(
                f"a terminal cannot have {side!r} {name}",
                remediation=f"give it from 1 to {MAX_SIDE}",
            )
