"""What a machine does that was taken over: it answers on vsock with anything but the protocol.

Runs inside as PID 1; imports nothing of ours. The port it listens on names the mischief.
"""

import json
import os
import select
import socket
import struct
import time

FRAME = struct.Struct(">IBI")
HELLO = b'{"agentd":2,"agent":"x","features":[],"boot":{"pid1":true,"uptime_ms":1}}\n'
STARTED = b'{"event":"started","pid":7}'
FIRST = 6000


def event(payload: bytes) -> bytes:
    return FRAME.pack(len(payload), 16, 1) + payload


def garbage(stream: socket.socket) -> None:
    stream.sendall(os.urandom(1 << 20))


def line_without_end(stream: socket.socket) -> None:
    while True:
        stream.sendall(b"{" * (1 << 20))


def flood_of_output(stream: socket.socket) -> None:
    stream.sendall(HELLO)
    stream.recv(1 << 16)
    stream.sendall(event(STARTED))
    while True:
        stream.sendall((FRAME.pack(1 << 16, 17, 1) + bytes(1 << 16)) * 16)


def flood_of_empty_frames(stream: socket.socket) -> None:
    stream.sendall(HELLO)
    stream.recv(1 << 16)
    stream.sendall(event(STARTED))
    while True:
        stream.sendall(FRAME.pack(0, 17, 1) * (1 << 14))


def silence(stream: socket.socket) -> None:
    time.sleep(3600)


def silence_after_the_greeting(stream: socket.socket) -> None:
    stream.sendall(HELLO)
    time.sleep(3600)


def death_in_a_frame(stream: socket.socket) -> None:
    stream.sendall(HELLO)
    stream.recv(1 << 16)
    stream.sendall(event(STARTED) + FRAME.pack(1000, 17, 1) + b"half")


def deaf(stream: socket.socket) -> None:
    """Greets, and never reads again."""
    stream.sendall(HELLO)
    time.sleep(3600)


def calls_the_host(stream: socket.socket) -> None:
    """A thousand connections to the host's ports, left half open; then what became of them."""
    mine = []
    refused = 0
    for port in range(1000):
        caller = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        caller.setblocking(False)
        try:
            caller.connect((socket.VMADDR_CID_HOST, 1024 + port))
        except BlockingIOError:
            mine.append(caller)
        except OSError:
            refused += 1
    time.sleep(2)
    reply = json.dumps({"refused": refused, "asked": len(mine)}).encode()
    stream.sendall(reply + b"\n")


def reboots(stream: socket.socket) -> None:
    stream.sendall(HELLO)
    stream.recv(1 << 16)
    stream.sendall(event(STARTED))
    os.execv("/bin/busybox", ["busybox", "reboot", "-f"])  # noqa: S606


# In this order from port FIRST on.
MISCHIEF = (
    garbage,
    line_without_end,
    flood_of_output,
    flood_of_empty_frames,
    silence,
    silence_after_the_greeting,
    death_in_a_frame,
    deaf,
    calls_the_host,
    reboots,
)


def main() -> None:
    listeners = {}
    for number, mischief in enumerate(MISCHIEF):
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, FIRST + number))
        listener.listen(128)
        listeners[listener] = mischief
    while True:
        for listener in select.select(list(listeners), [], [])[0]:
            stream, _ = listener.accept()
            if os.fork() == 0:
                try:
                    listeners[listener](stream)
                finally:
                    os._exit(0)
            stream.close()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


if __name__ == "__main__":
    main()
