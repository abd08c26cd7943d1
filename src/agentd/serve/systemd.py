"""What systemd is told: sd_notify(3), without its library."""

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress


class Notifier:
    """Silent where nobody listens. Never raises: the service manager may be gone."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Takes its variables out of ``environ``, for they are not for those that we start."""
        self._address = environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog(environ)
        for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)

    def ready(self, status: str) -> None:
        self._send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        # Type=notify-reload wants the time, so that it knows which READY=1 answers its signal.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # "@" is how an abstract name is written; its first byte is zero.
        name = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(1.0)
            sock.sendto("\n".join(lines).encode(), name)


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Return how often it wants to hear of us: half the time after which it kills us."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 2e6


def _line(text: str) -> str:
    return " ".join(text.split())
