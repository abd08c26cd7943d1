"""The agent as PID 1 of a container: what an OCI runtime started in its namespaces and its root.

The runtime has put in force what it was told of (``agentd.sandbox.backends.oci.config``) before
anything here runs: this adds what no runtime can, and serves. Standard library only.
"""

import os
import resource
import stat

from agentd.guest import agent
from agentd.guest.zygote import limits, served
from agentd.guest.zygote.messages import COMING_FD
from agentd.guest.zygote.served import Request
from agentd.linux import abi, caps, filtering, landlock, process
from agentd.linux.kernel import KERNEL
from agentd.linux.rights import close_all

_ALL = landlock.READ | landlock.EXEC | landlock.WRITE
_EVERYWHERE = landlock.READ | landlock.EXEC | landlock.TRUNCATE  # as ``box`` has it
_QUEUES = "/dev/mqueue"
_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def main() -> None:
    """Serve the host until it closes its end. Never returns."""
    served.main(confine)


def confine(request: Request, ready: agent.Ready) -> list[str]:
    """Confines us; returns the names of the controls that now hold. Raises OSError."""
    coming = _coming(request.get("coming"))
    steps = (
        ("identity", lambda: _become(request["becomes"])),
        ("rlimits", lambda: _rlimits(request)),
        ("no_new_privs", process.set_no_new_privs),
        ("capabilities", lambda: _capabilities(request)),
        ("dumpable", lambda: process.set_dumpable(False)),
        ("landlock", lambda: _landlock(request, coming)),
        ("seccomp", lambda: _seccomp(request, ready)),
    )
    done = served.in_force(request, steps)
    close_all(coming)
    if request["image"] is True:
        from agentd.guest.zygote import image_root

        agent.preload()
        image_root.import_nothing()
    return done


def _coming(places: object) -> list[int]:
    """Open what a layer to come will show at these ``places``, for Landlock's rules."""
    if not isinstance(places, list):  # an older supervisor passes nothing along
        return []
    try:
        if not stat.S_ISDIR(os.fstat(COMING_FD).st_mode):  # the kernel has no overlay for us
            return []
        return [os.open(str(name), _FOLDER, dir_fd=COMING_FD) for name in places]
    finally:
        os.close(COMING_FD)


def _become(uid: object) -> bool:
    """Without root a runtime maps the caller to 0 and to nothing else: be ``uid`` instead, in a
    user namespace below."""
    if not isinstance(uid, int):
        return False
    KERNEL.unshare(abi.CLONE_NEWUSER)
    process.map_ids((uid, 0), (uid, 0))
    return True


def _rlimits(request: Request) -> None:
    limits.no_core()
    files = request.get("open_files")  # of an older supervisor the runtime has set it
    if isinstance(files, int):
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _capabilities(request: Request) -> None:
    if request["uid"] == 0:
        caps.keep_roots(rw=request["rw"] is True)
    else:
        caps.drop_bounding_if_allowed()
        caps.drop_all()


def _landlock(request: Request, coming: list[int]) -> bool:
    """Defence in depth behind the read-only mounts, as the namespace wall has it."""
    version = request["landlock_abi"]
    if not isinstance(version, int) or not version:
        return False
    places = request["writable"]
    with landlock.Ruleset(abi=version, handle_net=False, scopes=True) as rules:
        rules.allow_path("/", _EVERYWHERE)
        rules.allow_path("/dev", landlock.WRITE | landlock.IOCTL_DEV)
        for path in places if isinstance(places, list) else []:
            rules.allow_path(str(path), _ALL | landlock.IOCTL_DEV)
        for fd in coming:
            rules.allow_path(fd, _ALL | landlock.IOCTL_DEV)
        if os.path.isdir(_QUEUES):
            rules.allow_path(_QUEUES, landlock.READ | landlock.WRITE)
        rules.restrict()
    return True


def _seccomp(request: Request, ready: agent.Ready) -> None:
    ready.answer_asked(filtering.install_and_listen(bytes.fromhex(str(request["filter"]))))
