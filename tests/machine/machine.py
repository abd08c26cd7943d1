"""An emulated x86 machine with a KVM, cgroup v2 and a kernel of choice, on this host's own files.

QEMU's emulation knows AMD's virtualisation instructions: the guest's /dev/kvm is a real one, slow.
The root is the host's, read-only over 9p beneath an overlay: what is installed here is there, and
what is written there is gone with the machine. Everything is held by open descriptors: nothing is
left of a machine, however its owner ends.
"""

import os
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.machine import resumed
from tests.machine.kernels import Kernel, kernel
from tests.vm import debian
from tests.vm.debian import Unavailable

from agentd.image import cpio
from agentd.image.modules import Modules
from agentd.image.tree import ImageTree
from agentd.linux import anyip

QEMU = "qemu-system-x86_64"
UNAVAILABLE = 77  # exit status: what automake's tests have for "skipped"
ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).resolve().parent
_DISK_BYTES = 16 << 30  # of which only what is written takes room
_TAIL = 4000
_CMDLINE = "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check"
_END_SECONDS = 20
# Of all kernels: what one has built in, or does not know, is passed over.
_MODULES = (
    *("virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci"),
    *("virtio_blk", "virtio_console", "crc32c_generic", "crc32c_cryptoapi", "ext4"),
    *("netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "overlay", "fuse", "loop"),
    *("irqbypass", "kvm", "ccp", "kvm_amd", "tun"),
    *anyip.MODULES,  # of a network of rules
)
# Folders that a program in there is told of.
_PASSED = ("XDG_CACHE_HOME", "FIRECRACKER", resumed.FOLDER)


class Lost(Exception):
    """The machine ended, or was too slow; the text ends with its console."""


@dataclass(frozen=True)
class Machine:
    """What is booted. ``line`` of Linux as kernels.kernel has it; ``systemd`` as PID 1."""

    line: str = ""
    systemd: bool = False
    memory: str = "4G"
    seconds: float = 600.0
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, argv: Sequence[str], show: Callable[[bytes], None]) -> int:
        """Boot, run the command in the checkout as root, and end; its exit status.

        ``show`` has its output as it comes. Raises Unavailable, and Lost.
        """
        for program in (QEMU, "mke2fs", "setpriv"):
            if shutil.which(program) is None:
                raise Unavailable(f"{program} is not installed")
        found = kernel(self.line)
        with ExitStack() as freed:
            archive = freed.enter_context(open(os.memfd_create("initrd"), "w+b"))
            archive.write(cpio.write(_initramfs(found, self._command(argv), self.systemd)))
            archive.flush()
            disk = freed.enter_context(_disk())
            console = freed.enter_context(tempfile.TemporaryFile())
            output, theirs = socket.socketpair()
            status, other = socket.socketpair()
            for end in (output, theirs, status, other):
                freed.enter_context(end)
            fds = [file.fileno() for file in (archive, disk, theirs, other)]
            process = subprocess.Popen(
                self._qemu(found, *fds),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
            freed.callback(_end, process)
            theirs.close()
            other.close()
            code = self._follow(output, status, show)
            if code is None:
                console.seek(0)
                tail = console.read().decode(errors="replace")[-_TAIL:]
                ended = process.poll() is not None
                what = "it ended" if ended else f"no status within {self.seconds:g} s"
                raise Lost(f"{what}; the console's end:\n{tail}")
            return code

    def _command(self, argv: Sequence[str]) -> str:
        passed = {name: os.environ[name] for name in _PASSED if name in os.environ}
        given = {"HOME": os.path.expanduser("~"), "PYTHONUNBUFFERED": "1", **passed}
        words = [f"{k}={v}" for k, v in (given | dict(self.environment)).items()]
        return f"cd {shlex.quote(str(ROOT))} && exec env {shlex.join([*words, *argv])}\n"

    def _qemu(self, found: Kernel, archive: int, disk: int, output: int, status: int) -> list[str]:
        return [
            *("setpriv", "--pdeathsig", "KILL", QEMU),  # it ends with us, kill -9 included
            *("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,+svm"),
            *("-smp", "2", "-m", self.memory),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(found.image), "-initrd", f"/proc/self/fd/{archive}"),
            *("-append", f"{_CMDLINE} random.trust_cpu=on"),
            *("-serial", "stdio", "-monitor", "none"),
            *("-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
            *("-drive", f"file=/proc/self/fd/{disk},if=virtio,format=raw,cache=unsafe"),
            *("-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=output,fd={output}"),
            *("-device", "virtserialport,chardev=output,name=machine.output"),
            *("-chardev", f"socket,id=status,fd={status}"),
            *("-device", "virtserialport,chardev=status,name=machine.status"),
        ]

    def _follow(
        self, output: socket.socket, status: socket.socket, show: Callable[[bytes], None]
    ) -> int | None:
        """Until the status came, which follows all output; None when there is none in time."""
        deadline = time.monotonic() + self.seconds
        poll = select.poll()
        poll.register(output, select.POLLIN)
        poll.register(status, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poll.poll(left * 1000)}
            if output.fileno() in ready:
                if not (data := output.recv(1 << 16)):
                    return None
                show(data)
            elif ready:
                told = status.recv(64)
                return int(told) if told else None
        return None


def _initramfs(found: Kernel, command: str, systemd: bool) -> ImageTree:
    tree = Modules(str(found.modules)).tree(found.release, _MODULES, ())
    tree.link("/lib", "usr/lib")
    tree.file("/bin/busybox", debian.busybox().read_bytes(), 0o755)
    tree.file("/init", (_HERE / "init").read_bytes(), 0o755)
    for name in ("start", "run"):
        tree.file(f"/machine/{name}", (_HERE / name).read_bytes(), 0o755)
    tree.file("/machine/modules", "\n".join(_MODULES).encode())
    tree.file("/machine/command", command.encode())
    needed = [str(ROOT), *(os.environ[name] for name in _PASSED if name in os.environ)]
    hidden = [path for path in needed if path.startswith("/tmp/") and os.path.isdir(path)]
    tree.file("/machine/folders", "\n".join(hidden).encode())
    if systemd:
        tree.file("/machine/systemd", b"")
    return tree


def _disk() -> IO[bytes]:
    """An empty file system on a file without a name."""
    disk = tempfile.TemporaryFile()  # noqa: SIM115  (the caller's to close)
    try:
        disk.truncate(_DISK_BYTES)
        fd = disk.fileno()
        argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", f"/proc/self/fd/{fd}"]
        subprocess.run(argv, pass_fds=[fd], stdin=subprocess.DEVNULL, check=True)
    except BaseException:
        disk.close()
        raise
    return disk


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait(_END_SECONDS)
