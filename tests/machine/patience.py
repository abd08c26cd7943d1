"""A plugin for pytest: gives agentd longer for what it waits for, where its machines are emulated.

How long agentd waits for a virtual machine is meant for hardware and for one emulation; that of a
machine within an emulated machine takes ten times as long. Of agentd in this process: a daemon or
a command line that a test starts has its own.
"""

from functools import reduce
from importlib import import_module
from pathlib import Path

from agentd.testing.patience import SLOWER

_BACKENDS = "agentd.sandbox.backends"
_WAITS = {
    "qemu.backend": ("BOOT_SECONDS", "_ANSWER_SECONDS", "_DEVICE_SECONDS"),
    "qemu.process": ("_START_SECONDS", "_UNPLUG_SECONDS"),
    "qemu.probe": ("_ANSWER_SECONDS",),
    "qemu.wall": ("STREAM_SECONDS",),
    "vm.states": ("STATE_SECONDS",),
    "vm.machine": ("STREAM_SECONDS",),
    "vm.supervisor": ("Keeper.answer_seconds",),
}


def pytest_configure() -> None:
    lengthen(SLOWER)


def patient(code: str) -> str:
    """``code`` for a Python of its own, which waits as long as this process does."""
    if SLOWER == 1:
        return code
    path = str(Path(__file__).parents[2])
    own = f"import sys; sys.path.append({path!r})\nfrom tests.machine import patience\n"
    return f"{own}patience.lengthen({SLOWER})\n{code}"


def lengthen(times: float) -> None:
    """What agentd waits for, in this process, so many times as long from now on."""
    for name, waits in _WAITS.items():
        module = import_module(f"{_BACKENDS}.{name}")
        for path in waits:
            *owners, wait = path.split(".")
            owner = reduce(getattr, owners, module)
            setattr(owner, wait, getattr(owner, wait) * times)
    # What the manager's connections to a guest wait for: a test that gives its own has that.
    usual = import_module("agentd.transport.guest").Guest.__init__.__kwdefaults__
    usual.update({name: usual[name] * times for name in ("handshake_timeout", "answer_timeout")})
