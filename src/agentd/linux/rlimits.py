"""Resource limits by name (setrlimit(2))."""

import resource
from collections.abc import Mapping

RESOURCES: Mapping[str, int] = {
    "address_space": resource.RLIMIT_AS,
    "core": resource.RLIMIT_CORE,
    "cpu_s": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "file_size": resource.RLIMIT_FSIZE,
    "locked_memory": resource.RLIMIT_MEMLOCK,
    "message_queues": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "open_files": resource.RLIMIT_NOFILE,
    "pending_signals": resource.RLIMIT_SIGPENDING,
    "processes": resource.RLIMIT_NPROC,
    "realtime_priority": resource.RLIMIT_RTPRIO,
    "stack": resource.RLIMIT_STACK,
}


def apply(limits: Mapping[str, int]) -> None:
    """Set soft and hard limits of the calling process, in the units of setrlimit(2).

    A limit above the present hard one is lowered to that, which holds it as well. Raises
    ValueError for a name that is not in RESOURCES or a value below 0, before anything is set.
    """
    for name, value in limits.items():
        if name not in RESOURCES:
            raise ValueError(f"rlimit {name!r} is not one of {', '.join(RESOURCES)}")
        if value < 0:
            raise ValueError(f"rlimit {name} {value} is below 0")
    for name, value in limits.items():
        _, hard = resource.getrlimit(RESOURCES[name])
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(RESOURCES[name], (bound, bound))
