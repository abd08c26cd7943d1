"""The port through which every step of a wall goes. Standard library only."""

import fcntl
import os
import resource

from agentd.linux import abi, anyip
from agentd.linux.kernel import Kernel


class WallKernel(Kernel):
    """Also what Python can ask of the kernel by itself: every step of a wall goes through here.

    A ``dry`` one changes nothing. It is no class of its own, and makes a harmless system call in
    place of each other: so what the interpreter learns of it in a rehearsal holds for a real one.
    """

    def __init__(self, dry: bool = False) -> None:
        self._dry = dry

    def syscall(self, number: int, *args: object) -> int:
        if self._dry:
            if number == abi.SYS.landlock_create_ruleset:  # whoever gets it closes it
                return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            number = abi.SYS.gettid
            super().syscall(number, *args)
            return 0
        return super().syscall(number, *args)

    def write(self, path: str, text: str) -> None:
        super().write("/dev/null" if self._dry else path, text)

    def mkdir(self, path: str, mode: int) -> None:
        if not self._dry:
            super().mkdir(path, mode)

    def symlink(self, target: str, path: str) -> None:
        if not self._dry:
            os.symlink(target, path)

    def open_folder(self, path: str) -> int:
        path = "/" if self._dry else path
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def setrlimit(self, number: int, limit: int) -> None:
        """Both the soft and the hard one."""
        if not self._dry:
            resource.setrlimit(number, (limit, limit))

    def become(self, uid: int) -> None:
        """Also the real and saved ids; in the user namespace they are the same number."""
        if not self._dry:
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        return data if self._dry else fcntl.ioctl(fd, request, data)

    def capture(self) -> list[int]:
        """Opens the sockets at which all that is dialled in here arrives (``anyip``)."""
        return [] if self._dry else [sock.detach() for sock in anyip.capture()]


KERNEL = WallKernel()
