"""One virtual machine whose PID 1 is the agent, under software emulation, for a module's tests."""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tests.vm.archive import Archive
from tests.vm.debian import Unavailable

from agentd.image import build
from agentd.image.model import Image
from agentd.model.errors import AgentdError
from agentd.transport.dial import dial

QEMU = "qemu-system-x86_64"
PORT = 5000
BOOT_SECONDS = 500
DEADLINE = 500.0  # seconds for one answer: the emulation is slow, and the machine may be busy
CMDLINE = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off no_timer_check"
PORTS = ("agentd", "spare.1")
_LOG_TAIL = 4000


class Machine:
    """A booted machine, whose agent is reached over vsock or a virtio port."""

    def __init__(
        self,
        folder: Path,
        process: "subprocess.Popen[bytes]",
        device: "subprocess.Popen[bytes]",
    ) -> None:
        self.folder = folder
        self.process = process
        self.device = device

    def open(self, port: int = PORT, timeout: float = BOOT_SECONDS) -> socket.socket:
        """A fresh stream to a vsock port, the agent's; waits for the boot."""
        stream = dial(f"hybrid:{self.folder / 'vsock'}:{port}", timeout)
        stream.settimeout(DEADLINE)
        return stream

    def qmp(self, *commands: dict[str, object]) -> list[dict[str, object]]:
        """QEMU's answers to commands of its monitor, one connection for all of them."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.settimeout(DEADLINE)
            monitor.connect(str(self.folder / "qmp"))
            with monitor.makefile("rb") as lines:
                return [
                    _qmp(monitor, lines, c) for c in ({"execute": "qmp_capabilities"}, *commands)
                ]

    def port(self, number: int = 0) -> socket.socket:
        """A stream to virtio port ``number``, which has one host at a time."""
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                stream.settimeout(DEADLINE)
                stream.connect(str(self.folder / f"port{number}"))
                return stream
            except OSError:
                stream.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise AssertionError(f"no port to the machine\n{self.log()}") from None
                time.sleep(0.02)

    def log(self) -> str:
        """The end of what the machine's console and QEMU said."""
        texts = [path.read_text(errors="replace") for path in self.folder.glob("*.log")]
        return "\n".join(texts)[-_LOG_TAIL:]

    def wait(self, seconds: float = DEADLINE) -> int | None:
        """QEMU's exit status; None when it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None


def image() -> Image:
    """The default image, built where there is none. Raises Unavailable."""
    if shutil.which(QEMU) is None:
        raise Unavailable(f"{QEMU} is not installed")
    try:
        return build.ensure("default")
    except AgentdError as error:
        raise Unavailable(f"no guest image: {error}") from error


@contextlib.contextmanager
def booted(
    guest: Image,
    *,
    extra: Sequence[str] = (),
    overlay: bytes = b"",
    listen: Sequence[str] = (f"vsock:{PORT}",),
    vsock: bool = True,
    words: str = "",
    memory: str = "256M",
    ports: Sequence[str] = PORTS,
) -> Iterator[Machine]:
    """A machine until the end of the block. ``overlay`` is an archive over the image's own.

    ``extra`` are QEMU's arguments, ``words`` the kernel's. The agent listens at every port and at
    ``listen``. ``vsock``: the device is there from the start, and not only its server.
    """
    with tempfile.TemporaryDirectory(prefix="agentd-vm-") as name:
        folder = Path(name)
        initramfs = guest.initramfs
        if overlay:
            initramfs = str(folder / "initramfs")
            Path(initramfs).write_bytes(Path(guest.initramfs).read_bytes() + overlay)
        places = [*(f"virtio:{port}" for port in ports), *listen]
        arguments = " ".join(f"--listen {place}" for place in places)
        argv = [
            QEMU,
            *("-M", "pc,accel=tcg,memory-backend=ram", "-cpu", "max", "-smp", "1", "-m", memory),
            *("-object", f"memory-backend-memfd,id=ram,size={memory},share=on"),
            *("-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", guest.kernel, "-initrd", initramfs),
            *("-append", f"{CMDLINE} {words} -- {arguments}"),
            *("-serial", f"file:{folder / 'console.log'}"),
            *("-device", "virtio-serial-pci"),
            *(word for number, port in enumerate(ports) for word in _port(folder, number, port)),
            *(_vsock(folder) if vsock else ()),
            *extra,
        ]
        server = [sys.executable, "-m", "agentd.vsock", "--cid", "3"]
        server += ["--socket", str(folder / "vhost"), "--path", str(folder / "vsock")]
        with _running(server, folder / "device.log") as device:
            assert eventually((folder / "vhost").exists), "the vsock device does not start"
            with _running(argv, folder / "qemu.log") as process:
                yield Machine(folder, process, device)


@contextlib.contextmanager
def _running(argv: Sequence[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with open(log, "wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _vsock(folder: Path) -> tuple[str, ...]:
    return (
        "-chardev",
        f"socket,id=vs,path={folder / 'vhost'}",
        "-device",
        "vhost-user-vsock-pci,chardev=vs",
    )


def _qmp(monitor: socket.socket, lines: BinaryIO, command: dict[str, object]) -> dict[str, object]:
    monitor.sendall(json.dumps(command).encode())
    while True:
        answer: dict[str, object] = json.loads(lines.readline())
        if "return" in answer or "error" in answer:
            return answer


def _port(folder: Path, number: int, name: str) -> tuple[str, ...]:
    return (
        "-chardev",
        f"socket,id=port{number},path={folder / f'port{number}'},server=on,wait=off",
        "-device",
        f"virtserialport,chardev=port{number},name={name}",
    )


def instead_of_the_agent(program: Path, *arguments: str) -> bytes:
    """An overlay whose /other is an init that loads the modules and becomes the program.

    Boot it with ``words="rdinit=/other"``.
    """
    script = "\n".join(
        [
            "#!/bin/busybox sh",
            "mkdir -p /dev /proc /sys /tmp",
            "mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sysfs /sys",
            "modprobe -a virtio_pci virtio_console vsock vmw_vsock_virtio_transport",
            f"exec /usr/bin/python3 -I -S -E /other.py {' '.join(arguments)}",
            "",
        ]
    )
    archive = Archive()
    archive.file("/other", script.encode(), 0o755)
    archive.file("/other.py", program.read_bytes())
    return archive.finish()


def eventually(condition: Callable[[], bool], seconds: float = DEADLINE) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
