"""Signals to the CLI."""

import ctypes
import os
import select
import signal
import threading

from agentd.client.cli.interrupts import Interrupts


def test_a_signal_that_comes_as_a_wait_begins_ends_it() -> None:
    """Python's own handler runs after the wait, then: Ctrl-C, or a stop, was heard by nobody."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)  # which is free
    handled = threading.Event()
    woken: list[bool] = []

    class Watched(Interrupts):
        def _on_resize(self, number: int, frame: object) -> None:
            handled.set()
            super()._on_resize(number, None)

    with Watched() as interrupts:

        def send() -> None:
            while not woken:
                handled.clear()
                os.kill(os.getpid(), signal.SIGWINCH)
                ready, _, _ = select.select([interrupts.wake], [], [], 120)
                if ready and handled.is_set():  # the other thread does not wait yet
                    interrupts.drain()
                else:
                    woken.append(bool(ready))
            libc.pthread_mutex_unlock(mutex)

        libc.pthread_mutex_lock(mutex)
        sender = threading.Thread(target=send)
        sender.start()
        libc.pthread_mutex_lock(mutex)  # no signal ends this: Python is away until it is given
        sender.join()
        libc.pthread_mutex_unlock(mutex)
    assert woken == [True]
