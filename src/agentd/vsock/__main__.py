"""python -m agentd.vsock: the device by hand, between a QEMU and unix sockets."""

import argparse
import contextlib
import os
import resource
import socket
import stat
import sys
from collections.abc import Iterator

from agentd.vsock.device import Device
from agentd.vsock.errors import Violation

_EXAMPLE = """example, with a guest that listens on vsock port 5000:
  python -m agentd.vsock --socket vhost.sock --path vsock.sock --cid 3 &
  qemu-system-x86_64 ... -object memory-backend-memfd,id=ram,size=256M,share=on \\
    -machine q35,memory-backend=ram -chardev socket,id=vs,path=vhost.sock \\
    -device vhost-user-vsock-pci,chardev=vs
  { echo 'CONNECT 5000'; cat; } | nc -U vsock.sock    # OK 1073741824, then the stream

A connection from the guest to port P of CID 2 goes to the unix socket vsock.sock_P.
Ends when QEMU does, with 0; with 1 and the reason when the guest or QEMU broke the protocol."""


def main(argv: list[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # 1023 connections and their listener
    try:
        with _listening(options.socket) as waiting, _listening(options.path) as listener:
            control, _ = waiting.accept()
            waiting.close()
            Device(control, options.cid, listener, options.path).run()
    except Violation as error:
        print(f"agentd.vsock: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"agentd.vsock: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m agentd.vsock",
        description="A vhost-user vsock device for QEMU, with Firecracker's host sockets.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--socket", required=True, help="where QEMU's chardev connects; made here")
    parser.add_argument("--path", required=True, help="where host programs connect; made here")
    parser.add_argument("--cid", type=int, default=3, help="the guest's address (default 3)")
    return parser


@contextlib.contextmanager
def _listening(path: str) -> Iterator[socket.socket]:
    """A unix socket of mode 0600; an old one at its path, left by a killed device, is replaced."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        mask = os.umask(0o177)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        try:
            sock.listen(128)
            yield sock
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


if __name__ == "__main__":
    sys.exit(main())
