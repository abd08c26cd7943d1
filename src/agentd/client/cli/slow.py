"""A daemon that takes long to make a sandbox: a person at a terminal is told what is waited for."""

import argparse
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agentd.client.cli import output, table

SECONDS = 2.0  # of silence; a sandbox that needs no virtual machine takes a hundredth of that
_MACHINES = ("microvm", "qemu", "firecracker")


@contextmanager
def told(command: str, where: object, options: argparse.Namespace) -> Iterator[None]:
    """Say a line on standard error, where that is a terminal and what is in the block takes long.

    A call takes as long as it takes: of one, what a machine was asked for is told alone.
    """
    of_a_call = command == "call" and not _asks_for_machine(options)
    if of_a_call or options.json or not table.is_terminal(sys.stderr):
        yield
        return
    timer = threading.Timer(SECONDS, output.say, (_line(where, options), command))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _asks_for_machine(options: argparse.Namespace) -> bool:
    return not {options.isolation, options.backend}.isdisjoint(_MACHINES)


def _line(where: object, options: argparse.Namespace) -> str:
    line = f"waiting for the daemon at {where} to make the sandbox"
    if not _asks_for_machine(options):
        return line
    from agentd.image.build import ROUGH_SIZE

    return (
        f"{line}: a first virtual machine has its image built ({ROUGH_SIZE}), which takes minutes; "
        "agentd image build, run as the daemon's user, shows how far it comes"
    )
