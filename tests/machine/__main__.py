"""``python -m tests.machine [OPTION...] -- COMMAND...``: run a command in an emulated machine."""

import argparse
import sys
import time
from collections.abc import Callable

from tests.machine import resumed
from tests.machine.machine import UNAVAILABLE, Lost, Machine, Unavailable

LOST = 125


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/machine", description=__doc__)
    parser.add_argument("--kernel", default="", metavar="LINE", help="such as 6.1; else apt's own")
    parser.add_argument("--systemd", action="store_true", help="as PID 1")
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--seconds", type=float, default=600.0, help="until it is ended")
    parser.add_argument("command", nargs="+", help="run as root in this checkout's folder")
    chosen = parser.parse_args()
    machine = Machine(chosen.kernel, chosen.systemd, chosen.memory, chosen.seconds)
    began = time.monotonic()
    try:
        with resumed.written_down() as note:
            code = machine.run(chosen.command, lambda data: _show(data, note))
    except Unavailable as missing:
        print(f"machine: cannot be had here: {missing}", file=sys.stderr)
        return UNAVAILABLE
    except Lost as lost:
        print(f"machine: {lost}", file=sys.stderr)
        return LOST
    print(f"machine: exit status {code} after {time.monotonic() - began:.0f} s", file=sys.stderr)
    return code


def _show(data: bytes, note: Callable[[bytes], None]) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    note(data)


if __name__ == "__main__":
    sys.exit(main())
