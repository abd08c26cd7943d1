"""A guest that has a KVM of its own: QEMU's emulation knows AMD's virtualisation instructions.

Slow, and a real KVM all the same: the kernel's module runs a guest's code on the (emulated) CPU.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.vm import debian, image
from tests.vm.archive import Archive

QEMU = "qemu-system-x86_64"
_SECONDS = 500
_MODULES = ("irqbypass", "kvm", "kvm-amd")
_TAIL = 4000
_INIT = """\
#!/bin/sh
mkdir -p /dev /proc /sys
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
PYTHONPATH={code} {python} /probe.py before >/dev/ttyS1 2>/dev/ttyS0
for module in {modules}; do insmod /$module; done
PYTHONPATH={code} {python} /probe.py after >/dev/ttyS1 2>/dev/ttyS0
poweroff -f
"""
_PROBE = """\
import json, os, sys
from dataclasses import asdict
from agentd.linux import kvm
def tell(name):
    print(json.dumps({"name": name} | asdict(kvm.probe(seconds=60))), flush=True)
tell(sys.argv[1])
if sys.argv[1] == "after":
    os.chmod("/dev/kvm", 0o600)
    os.setuid(1000)
    tell("another user")
"""


def reports() -> dict[str, dict[str, object]]:
    """By name: ``before`` the modules are there, ``after``, and ``another user``'s.

    Raises Unavailable, and AssertionError with the console's end.
    """
    if shutil.which(QEMU) is None:
        raise debian.Unavailable(f"{QEMU} is not installed")
    kernel = debian.kernel()
    with tempfile.TemporaryDirectory(prefix="agentd-vm-") as name:
        folder = Path(name)
        (folder / "initrd").write_bytes(image.initramfs() + _overlay(kernel))
        argv = [
            QEMU,
            *("-M", "q35", "-accel", "tcg", "-cpu", "max,+svm", "-smp", "1", "-m", "768M"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-kernel", str(kernel), "-initrd", str(folder / "initrd")),
            *("-append", "console=ttyS0 quiet panic=-1 no_timer_check rdinit=/nested"),
            *("-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'results'}"),
        ]
        with open(folder / "console", "ab") as log:
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=_SECONDS,
                check=False,
            )
        lines = (folder / "results").read_text().splitlines()
        found = {str(line.pop("name")): line for line in map(json.loads, lines)}
        assert len(found) == 3, (folder / "console").read_text(errors="replace")[-_TAIL:]
        return found


def _overlay(kernel: Path) -> bytes:
    archive = Archive()
    for applet in ("insmod", "mkdir", "mount", "poweroff", "sh"):
        archive.symlink(f"/usr/bin/{applet}", "busybox")
    modules = debian.modules(kernel, *_MODULES)
    for name, content in modules.items():
        archive.file(f"/{name}", content)
    archive.file("/probe.py", _PROBE.encode())
    init = _INIT.format(code=image.CODE, python=image.PYTHON, modules=" ".join(modules))
    archive.file("/nested", init.encode(), 0o755)
    return archive.finish()
