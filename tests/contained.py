"""What a container takes away from a process, taken away here: command lines to start one with."""

#: Of root, by Docker and Podman; the others of capabilities(7) it has not.
CONTAINER = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("net_bind_service", "net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)


def with_capabilities(*names: str) -> list[str]:
    """Of root, only these."""
    return ["setpriv", "--bounding-set", ",".join(["-all", *(f"+{name}" for name in names)])]


def without_capabilities(*names: str) -> list[str]:
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in names)]
