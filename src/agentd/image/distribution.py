"""What machine this is, as /etc/os-release tells it."""

import platform

ELSEWHERE = (
    "build one on a Debian machine with the same agentd and copy its folder "
    "(agentd image inspect shows it) to the same place here, or give --kernel and --initramfs"
)


def is_debian() -> bool:
    return _release().get("ID") == "debian"


def name() -> str:
    """Return it, as "Ubuntu 24.04.1 LTS"."""
    return _release().get("PRETTY_NAME") or "this machine"


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}
