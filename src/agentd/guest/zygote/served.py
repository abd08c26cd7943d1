"""The agent as the first process of what a runtime started, until its host goes away.

Imports little: behind gVisor each module costs some milliseconds. Standard library only.
"""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterable

from agentd.guest import agent
from agentd.guest.zygote.messages import LISTENER_FD, receive, refuse

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

Request = dict[str, object]
#: Puts in force what this kernel has of the controls, and names them.
Confine = Callable[[Request, agent.Ready], list[str]]


def in_force(request: Request, steps: Iterable[tuple[str, Callable[[], object]]]) -> list[str]:
    """Take the steps, and name those that hold: a step that is False could not be taken here, and
    ``without`` of the request leaves some out."""
    without = request["without"]
    skip = without if isinstance(without, list) else []
    return [name for name, step in steps if name not in skip and step() is not False]


def main(confine: Confine) -> None:
    """Serve the host's end of ``LISTENER_FD`` until it is closed. Never returns."""
    listener = socket.socket(fileno=LISTENER_FD)
    listener.set_inheritable(False)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the host ends us by closing the socket
    os.umask(0o022)
    os.chdir("/")
    try:
        request, _ = receive(listener)
        ready = agent.Ready(pid1=True)
        done = confine(request, ready)
        listener.sendall(json.dumps({"controls": done}).encode())
        if "env" not in request:  # started ahead of the request that says it
            agent.preload()
            request |= receive(listener)[0]
    except EOFError:  # nobody wants it any more
        os._exit(0)
    except Exception as error:
        refuse(listener, None, error)
        os._exit(1)
    env = request["env"]
    ready.import_late()
    ready.serve(listener, env if isinstance(env, dict) else {})
    os._exit(0)
