"""One boot of a guest under software emulation: no KVM, no network, no disk."""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.vm import debian, image

QEMU = "qemu-system-x86_64"
BOOT_SECONDS = 1200
_CMDLINE = "console=ttyS0 loglevel=4 panic=-1 mitigations=off no_timer_check"
_MEMORY = "768M"
_LOG_TAIL = 4000
_LAST = "nothing_left"  # of the checks


class Lost(Exception):
    """The guest ended without its results; the text ends with its console."""


def run_checks() -> dict[str, dict[str, Any]]:
    """The checks' lines, by name. Raises Unavailable and Lost."""
    if shutil.which(QEMU) is None:
        raise debian.Unavailable(f"{QEMU} is not installed")
    kernel = debian.kernel()
    with tempfile.TemporaryDirectory(prefix="agentd-vm-") as folder:
        place = Path(folder)
        (place / "initrd").write_bytes(image.initramfs())
        _boot(kernel, place)
        return _results(place)


def _boot(kernel: Path, place: Path) -> None:
    """Until the guest powers itself off, twenty minutes at most."""
    argv = [
        QEMU,
        *("-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", _MEMORY),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-kernel", str(kernel), "-initrd", str(place / "initrd"), "-append", _CMDLINE),
        *("-serial", f"file:{place / 'console'}", "-serial", f"file:{place / 'results'}"),
    ]
    with open(place / "qemu", "wb") as log:
        guest = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            guest.wait(BOOT_SECONDS)
        except subprocess.TimeoutExpired:
            raise Lost(f"the guest ran for {BOOT_SECONDS} s\n{_tail(place)}") from None
        finally:
            guest.kill()
            guest.wait()
    if guest.returncode != 0:
        raise Lost(f"{QEMU} exited with {guest.returncode}\n{_tail(place)}")


def _results(place: Path) -> dict[str, dict[str, Any]]:
    lines = (place / "results").read_text().splitlines()
    found = {line["check"]: line for line in map(json.loads, lines)}
    if _LAST not in found:
        last = list(found)[-1] if found else "nothing"
        raise Lost(f"the guest ended amid its checks, after {last}\n{_tail(place)}")
    return found


def _tail(place: Path) -> str:
    logs = [place / "qemu", place / "console"]
    texts = [log.read_text(errors="replace") for log in logs if log.exists()]
    return "\n".join(texts)[-_LOG_TAIL:]
