"""A guest under QEMU whose vsock device is ours, run as a process of its own."""

import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from tests.vm import debian, image
from tests.vm.archive import Archive

HERE = Path(__file__).resolve().parent
QEMU = "qemu-system-x86_64"
PORT = 5000
BOOT_SECONDS = 500  # under emulation, beside others: a minute where nobody is
_APPLETS = ("insmod", "mkdir", "mount", "sh")
_CMDLINE = "console=ttyS0 loglevel=4 panic=-1 mitigations=off no_timer_check"
_TAIL = 4000


class Machine:
    """QEMU and the device. Raises Unavailable when one cannot be had here."""

    def __init__(self) -> None:
        if shutil.which(QEMU) is None:
            raise debian.Unavailable(f"{QEMU} is not installed")
        kernel = debian.kernel()
        self._folder = tempfile.TemporaryDirectory(prefix="agentd-vsock-")
        self.place = Path(self._folder.name)
        self.path = str(self.place / "v")
        (self.place / "initrd").write_bytes(_initramfs(kernel))
        self._log = open(self.place / "log", "wb")  # noqa: SIM115 closed by close()
        self.device = self._device()
        self.qemu = self._qemu(kernel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in (self.qemu, self.device):
            process.kill()
            process.wait()
        self._log.close()
        self._folder.cleanup()

    def console(self) -> str:
        logs = [self.place / name for name in ("log", "console")]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())[-_TAIL:]

    def connect(self, line: str = "", port: int = PORT) -> socket.socket:
        """A stream to the guest, once it listens; ``line`` tells it what to do."""
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            stream = self.attempt(port)
            if stream is not None:
                if line:
                    stream.sendall(line.encode() + b"\n")
                return stream
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing listens on {port}\n{self.console()}")
            time.sleep(0.05)

    def attempt(self, port: int = PORT) -> socket.socket | None:
        """One try; None when it was refused."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(BOOT_SECONDS)
            stream.connect(self.path)
            stream.sendall(b"CONNECT %d\n" % port)
            answer = b""
            while not answer.endswith(b"\n"):
                byte = stream.recv(1)
                if not byte:
                    raise ConnectionError(answer)
                answer += byte
            assert answer.startswith(b"OK "), answer
            return stream
        except (ConnectionError, BlockingIOError):  # refused, or the backlog is full
            stream.close()
            return None
        except BaseException:
            stream.close()
            raise

    def ask(self, line: str) -> bytes:
        """All that the guest answers to a line."""
        with self.connect(line) as stream:
            return read_all(stream)

    def _device(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-I", "-m", "agentd.vsock", "--cid", "42"]
        argv += ["--socket", str(self.place / "vhost"), "--path", self.path]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 120
        while not os.path.exists(self.path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the device did not start: {self.console()}")
            time.sleep(0.01)
        return process

    def _qemu(self, kernel: Path) -> subprocess.Popen[bytes]:
        argv = [
            QEMU,
            *("-M", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-smp", "1"),
            *("-object", "memory-backend-memfd,id=ram,size=512M,share=on", "-m", "512M"),
            *("-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none"),
            *("-kernel", str(kernel), "-initrd", str(self.place / "initrd")),
            *("-append", _CMDLINE, "-serial", f"file:{self.place / 'console'}"),
            *("-chardev", f"socket,id=vs,path={self.place / 'vhost'}"),
            *("-device", "vhost-user-vsock-pci,chardev=vs"),
        ]
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)


def read_all(stream: socket.socket) -> bytes:
    parts = []
    while data := stream.recv(1 << 18):
        parts.append(data)
    return b"".join(parts)


def gone(stream: socket.socket, seconds: float) -> bool:
    """Whether the far end closed the stream, or does so in time."""
    poll = select.poll()
    poll.register(stream, 0)  # POLLHUP comes unasked
    return bool(poll.poll(seconds * 1000))


def _initramfs(kernel: Path) -> bytes:
    """The cached base with Python and busybox, then the modules and the guest's part."""
    archive = Archive()
    for name in _APPLETS:
        archive.symlink(f"/usr/bin/{name}", "busybox")
    modules = debian.modules(kernel, "virtio_pci", "vmw_vsock_virtio_transport")
    for name, content in modules.items():
        archive.file(f"/modules/{name}", content)
    archive.file("/guest.py", (HERE / "guest.py").read_bytes())
    init = (HERE / "init").read_text().replace("@PYTHON@", image.PYTHON)
    init = init.replace("@MODULES@", " ".join(modules))
    archive.file("/init", init.encode(), 0o755)
    return image.base() + archive.finish()
