"""What runs in the guest: it listens on vsock port 5000; a client's first line says what to do."""

import hashlib
import socket
import threading
import time

PORT = 5000
HOST = 2
CHUNK = 1 << 18


def echo(client, reader, _):
    while data := reader.read1(CHUNK):
        client.sendall(data)


def source(client, _, argument):
    """So many bytes of a pattern that the client knows."""
    left = int(argument)
    block = bytes(range(256)) * (CHUNK // 256)
    while left > 0:
        client.sendall(block[: min(left, CHUNK)])
        left -= CHUNK


def sink(client, reader, _):
    """Until the client's half close; then the count and the hash."""
    digest = hashlib.sha256()
    count = 0
    while data := reader.read1(CHUNK):
        digest.update(data)
        count += len(data)
    client.sendall(f"{count} {digest.hexdigest()}\n".encode())


def drain(client, reader, _):
    """As sink, without the hash: for speed."""
    count = 0
    while data := reader.read1(CHUNK):
        count += len(data)
    client.sendall(f"{count}\n".encode())


def finish(client, reader, _):
    """Half close of the guest's own: a greeting, no more; then count what still comes."""
    client.sendall(b"greeting")
    client.shutdown(socket.SHUT_WR)
    count = 0
    while data := reader.read1(CHUNK):
        count += len(data)
    RESULTS["finish"] = count


def gone(client, reader, _):
    """Write until the client is found to be gone; how that was seen is asked for with `result`."""
    try:
        while True:
            client.sendall(b"x" * 1000)
            time.sleep(0.01)
    except OSError as error:
        RESULTS["gone"] = error.errno


def ended(client, reader, _):
    """An idle client goes away altogether: its end is read."""
    RESULTS["ended"] = len(reader.read())


def result(client, _, argument):
    client.sendall(repr(RESULTS.get(argument)).encode())


def dial(client, _, argument):
    """Connect to the host's port, say hello, and hand on what it answers, or the errno."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as out:
        try:
            out.connect((HOST, int(argument)))
        except OSError as error:
            client.sendall(b"errno %d" % error.errno)
            return
        out.sendall(b"hello")
        out.shutdown(socket.SHUT_WR)
        while data := out.recv(CHUNK):
            client.sendall(data)


def boot(client, _, _argument):
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        client.sendall(file.read().strip())


def reboot(*_):
    """At once: nothing is closed, nobody is told (Documentation/admin-guide/sysrq.rst)."""
    with open("/proc/sysrq-trigger", "wb") as trigger:
        trigger.write(b"b")


RESULTS = {}
ACTIONS = (echo, source, sink, drain, finish, gone, ended, result, dial, boot, reboot)


def serve(client):
    with client, client.makefile("rb") as reader:
        word, _, argument = reader.readline().decode().strip().partition(" ")
        for action in ACTIONS:
            if action.__name__ == word:
                try:
                    action(client, reader, argument)
                except OSError as error:
                    print(word, error, flush=True)


def main():
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((socket.VMADDR_CID_ANY, PORT))
        listener.listen(1024)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve, args=(client,), daemon=True).start()


main()
