"""``agentd-guest``: where to listen, and PID 1 or not."""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentd._version import __version__
from agentd.guest.init import FIRST, Init, become_the_first, is_the_first, say
from agentd.guest.listen import FORMS, ListenPlaces, ListenRefused, check, say_open

if TYPE_CHECKING:
    from agentd.guest.agent import Agent

DEFAULT = "vsock:5000"
HELP = f"""usage: agentd-guest [--listen WHERE]...

The agentd guest agent: runs the host's commands inside a sandbox. As PID 1 it is the init, too.

  --listen WHERE   {FORMS}; may be given
                   several times (default: {DEFAULT})
  --version        print the version and exit
  -h, --help       print this and exit

examples:
  agentd-guest                                   in a virtual machine: any CID, port 5000
  agentd-guest --listen unix:/run/agentd.sock    connections at a socket, mode 0600
  agentd-guest --listen stdio                    one connection, at stdin and stdout
  agentd-guest --listen virtio:agent.0           one after the other, at a virtio-serial port
  agentd-guest --listen fd:3                     an inherited socket, connected or listening
  echo '{{"command":"uname"}}' | agentd-guest --listen stdio
"""
MAX_PLACES = 16
_EX_FAILED, _EX_USAGE = 1, 2


def main(argv: list[str] | None = None) -> int:
    """Runs the console script; returns the exit status. As PID 1 it does not return."""
    arguments = sys.argv[1:] if argv is None else argv
    pid1 = os.getpid() == 1
    if os.path.basename(sys.argv[0]) == FIRST:
        # It looked at no argument.
        become_the_first()
        arguments = []
        if not pid1:
            say("Starting...")
    try:
        places = parse(arguments)
    except ListenRefused as error:
        say(str(error))
        if not pid1:
            return _EX_USAGE
        # The kernel hands words of its command line on to init, and panics if that ends.
        say(f"going on with {DEFAULT}")
        places = [DEFAULT]
    if places in (["help"], ["version"]):
        print(HELP if places == ["help"] else f"agentd-guest {__version__}\n", end="")
        return 0
    if pid1:
        _import_all()
        Init(lambda: run(places, pid1=True)).run()
    return run(places, pid1=False)


def parse(arguments: list[str]) -> list[str]:
    """Returns --listen's values, checked, or ``help`` or ``version``. Raises ListenRefused."""
    places: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-h", "--help", "--version"):
            return ["version" if word == "--version" else "help"]
        name, equals, value = word.partition("=")
        if name != "--listen":
            raise ListenRefused(f"unknown argument {word!r}: see agentd-guest --help")
        where = value if equals else next(words, "")
        check(where)
        if where not in places:
            places.append(where)
    if len(places) > MAX_PLACES:
        raise ListenRefused(f"--listen {len(places)} times: at most {MAX_PLACES}")
    return places or [DEFAULT]


def _import_all() -> None:
    """Before PID 1 mounts over /tmp and /run: the program itself may lie there."""
    from agentd.guest import agent, connection, listener, loop, vm  # noqa: F401
    from agentd.linux import mounts, net, process  # noqa: F401

    agent.preload()
    vm.preload()


def run(places: Sequence[str], *, pid1: bool) -> int:
    """Be the agent at ``places`` until SIGTERM, SIGINT or the end of the only connection.

    As PID 1's child it goes on trying for those that cannot be had.
    """
    # Imported here: --help, and an init that will only fork, do without.
    from agentd.guest.agent import create, preload
    from agentd.guest.connection import report
    from agentd.guest.loop import Loop

    # The agent works in the root directory.
    places = [_absolute(where) for where in places]
    protect_from_oom()
    preload()  # the file that it is of may be replaced one day
    loop = Loop(on_error=report)
    agent = create(loop, pid1=pid1)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.on_signal(number, agent.stop)
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        stack.callback(agent.processes.close)
        stack.callback(agent.stop)
        if pid1:
            from agentd.guest import vm

            if vm.is_machine():
                stack.callback(vm.install(agent).close)
        try:
            opened = ListenPlaces(agent, places, keep_trying=pid1)
        except ListenRefused as error:
            say(str(error))
            return _EX_FAILED
        stack.callback(opened.close)
        protect_from_tracing()
        _say_where(agent, opened)
        loop.run()
    if not is_the_first():
        say("stopped")
    return 0


def _say_where(agent: "Agent", opened: ListenPlaces) -> None:
    """In the words of the first agent, where that is who we are: they may be waited for."""
    if is_the_first():
        agent.on_connection = _tell_connection
        for where in opened.open:
            say_open(where)
        return
    names = ", ".join(opened.open) or "nothing yet"
    say(f"listening on {names}, version {__version__}")


def _tell_connection(opened: bool) -> None:
    say("Accepted connection" if opened else "Connection closed")


def _absolute(where: str) -> str:
    kind, _, path = where.partition(":")
    return f"unix:{os.path.abspath(path)}" if kind == "unix" else where


def protect_from_oom() -> None:
    """Exempt the agent from the OOM killer, where it may; its commands are not."""
    from agentd.linux.process import oom_score_adj

    with contextlib.suppress(OSError):
        oom_score_adj(-1000)


def protect_from_tracing() -> None:
    """Keeps commands of the same user from ptracing the agent and opening its descriptors."""
    from agentd.linux.process import set_dumpable

    with contextlib.suppress(OSError):
        set_dumpable(False)


if __name__ == "__main__":
    sys.exit(main())
