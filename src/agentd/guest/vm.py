"""A virtual machine as a sandbox of its own: its user, its limits, and what sys.setup sets.

Speaks to the kernel that init has booted; nothing here is for a container.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentd.guest import system, vm_certificates, vm_front, vm_net, vm_root, vm_scratch
from agentd.guest.init import say
from agentd.guest.operation import Channel, ChannelOperation, RequestError, Starter
from agentd.guest.stepped import plain
from agentd.guest.vm_group import GuestGroup
from agentd.guest.vm_identity import AsRoot, Identity
from agentd.guest.vm_setup import ImageDisk, Net, Setup
from agentd.guest.zygote.image_root import import_nothing
from agentd.guest.zygote.root import CERTIFICATES
from agentd.linux import anyip
from agentd.linux.kernel import KERNEL, Kernel

if TYPE_CHECKING:
    from agentd.guest.agent import Agent

USER = 1000
STATE = vm_scratch.STATE
_STATE_FILE = f"{STATE}/state.json"
_MAX_STATE = 4 << 20
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NETWORK_SECONDS = 0.5
# The kernel's own numbers of its first namespaces (include/linux/proc_ns.h, PROC_PID_INIT_INO).
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_PASSWD = (f"sandbox:x:{USER}:{USER}:sandbox:{vm_scratch.HOME}:/bin/sh\n", f"sandbox:x:{USER}:\n")


def is_machine() -> bool:
    """Return whether our init is the kernel's own, not that of a container."""
    try:
        return os.getppid() == 1 and os.stat("/proc/self/ns/pid").st_ino == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def install(agent: "Agent") -> "GuestMachine":
    """Make the agent the master of its machine. Warns on stderr of what fails, and goes on."""
    machine = GuestMachine(agent)
    agent.privileged = machine.identity
    steps: tuple[tuple[str, Callable[[], object]], ...] = (
        # An initramfs without an entry for it leaves the root open to everyone (mm/shmem.c).
        ("root directory", lambda: os.chmod("/", 0o755)),  # noqa: S103  as every root is
        # Before anyone runs: /run may be open to all.
        ("directory of the agent's state", lambda: os.makedirs(STATE, mode=0o755, exist_ok=True)),
        ("writable places", lambda: vm_scratch.prepare(USER)),
        ("user", _add_user),
        ("state of the last agent", machine.load),
    )
    with machine.identity:
        machine.identity.become(machine.user)
        for name, step in steps:
            try:
                step()
            except (OSError, ValueError, KeyError) as error:
                say(f"{name} not set up: {error}")
    return machine


def preload() -> None:
    """Import what is used late: the program itself may lie where init mounts."""
    from agentd.linux import clone  # noqa: F401


class GuestMachine:
    """The agent's machine: its mounts, user and limits. ``user``: as whom v2 acts by default."""

    def __init__(self, agent: "Agent", kernel: Kernel = KERNEL) -> None:
        self.user = USER
        self.env: dict[str, str] = {}
        self.open_files: int | None = None
        self.group: GuestGroup | None = None
        #: Where commands begin, and with what, in the root of an image; None in the machine's own.
        self.workdir = vm_scratch.WORKSPACE
        self.image_env: dict[str, str] | None = None
        # What was put over files of the root: mounts of this process's namespace there.
        self._placed: dict[str, str] = {}
        self.identity = Identity()
        #: Of a network that is restricted to rules: the host's port, and what passes on to that.
        self.relay: int | None = None
        self._front: vm_front.FrontEnd | None = None
        #: Whom programs trust, where connections are read there: PEM.
        self.authority: str | None = None
        self._processes = agent.processes
        self._loop = agent.loop
        self._kernel = kernel
        self._processes.spawn_in(lambda inner: AsRoot(self.identity, inner))
        agent.extend(
            lambda operations: {
                "exec": self._with_defaults(operations["exec"]),
                "sys.setup": self._as_root(plain(self._setup)),
                "sys.reseed": self._as_root(operations["sys.reseed"]),
                "sys.usage": self._as_root(operations["sys.usage"]),
                "sys.counters": plain(lambda channel, _: self._counters(channel)),
            },
            feature="setup",
        )

    def close(self) -> None:
        if self._front is not None:
            self._front.close()
        if self.group is not None:
            self.group.close()

    def load(self) -> None:
        """Loads what the agent before this one was told. Raises OSError, ValueError."""
        try:
            with open(_STATE_FILE, "rb") as file:
                state = json.loads(file.read(_MAX_STATE))
        except FileNotFoundError:
            return
        self._remember(state["user"], state["env"], state["open_files"])
        if state["image_env"] is not None:
            try:
                vm_root.enter(self._kernel)
            except OSError as error:
                # Not one of the steps that are done without: commands would be in another root.
                raise RuntimeError(f"the image's root cannot be entered: {error}") from error
            self._begin_in(state["workdir"], state["image_env"])
            self._place(state["placed"])
        self._trust(state["authority"])
        if state["relay"] is not None:
            self._pass_on_again(state["relay"])
        self._enter_group()

    # --- sys.setup ---

    def _setup(self, channel: Channel, request: dict[str, object]) -> None:
        setup = Setup(request)
        limits: dict[str, int | float] = {}
        controls: list[str] = []
        for name, step in self._steps(setup, limits):
            try:
                step()
            except OSError as error:
                text = error.strerror or str(error)
                raise RequestError(f"{name}: {text}", error.errno or 0) from None
            controls.append(name)
        self._save()
        channel.finish("result", controls=controls, limits=limits)

    def _steps(
        self, setup: Setup, limits: dict[str, int | float]
    ) -> list[tuple[str, Callable[[], object]]]:
        """In order: before the entropy nothing may need a random number."""
        authority = None if setup.net is None else setup.net.authority
        steps: list[tuple[object, str, Callable[[], object]]] = [
            (setup.entropy, "entropy", lambda: self._reseed(setup.entropy or b"")),
            (setup.unix_ns, "clock", lambda: _set_clock(setup.unix_ns or 0)),
            (setup.root, "root", lambda: self._change_root(setup.root, authority)),
            (setup.hostname, "hostname", lambda: self._hostname(setup.hostname or "")),
            (setup.machine_id, "machine_id", lambda: self._machine_id(setup.machine_id or "")),
            (setup.boot_id, "boot_id", lambda: self._place({_BOOT_ID: f"{setup.boot_id}\n"})),
            (setup.user, "user", lambda: self._become(setup.user or 0)),
            (setup.env, "env", lambda: self._remember(self.user, setup.env or {}, self.open_files)),
            (True, "memory", lambda: self._limit(limits, "memory", setup.memory)),
            (setup.pids, "pids", lambda: self._limit(limits, "pids", setup.pids)),
            (setup.cpus, "cpus", lambda: self._limit(limits, "cpus", setup.cpus)),
            (setup.disk, "disk", lambda: self._disk(limits, setup.disk or 0)),
            (setup.open_files, "open_files", lambda: self._files(limits, setup.open_files or 0)),
            (authority or self.authority, "certificates", lambda: self._trust(authority)),
            (setup.net, "network", lambda: self._net(setup.net)),
        ]
        return [(name, step) for asked, name, step in steps if asked is not None]

    def _reseed(self, entropy: bytes) -> None:
        if not system.add_entropy(entropy):
            raise OSError(1, "the kernel does not credit it")

    def _change_root(self, image: ImageDisk | None, authority: str | None) -> None:
        if image is None:
            return
        if self.image_env is not None:
            raise OSError(errno.EBUSY, "it is an image's already")
        places = [*image.places, *((share.target, True) for share in image.shares)]
        if authority is not None:
            places.append((CERTIFICATES, True))
        vm_root.build(
            image.serial,
            writable=image.writable,
            places=places,
            shares=image.shares,
            shown=image.shown,
            kernel=self._kernel,
        )
        vm_root.enter(self._kernel)
        self._begin_in(image.workdir, image.env)

    def _begin_in(self, workdir: str | None, env: dict[str, str]) -> None:
        """From here on nothing of the machine's own root is in reach."""
        self.workdir, self.image_env = workdir or vm_scratch.WORKSPACE, env
        import_nothing()

    def _hostname(self, name: str) -> None:
        self._kernel.sethostname(name)
        self._place(
            {
                "/etc/hostname": f"{name}\n",
                "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n",
            }
        )

    def _machine_id(self, value: str) -> None:
        self._place({"/etc/machine-id": f"{value}\n"})

    def _place(self, contents: dict[str, str]) -> None:
        vm_scratch.place(contents, STATE, self._kernel)
        self._placed |= contents

    def _become(self, user: int) -> None:
        self._remember(user, self.env, self.open_files)
        vm_scratch.give_to(user)

    def _limit(self, limits: dict[str, int | float], name: str, value: float | None) -> None:
        group = self._enter_group()
        if name == "memory":
            limits[name] = group.limit_memory(None if value is None else int(value))
        elif value is not None:
            limits[name] = value
            if name == "pids":
                group.limit_pids(int(value))
            else:
                group.limit_cpus(value)

    def _enter_group(self) -> GuestGroup:
        """Commands are born in the group from now on."""
        if self.group is None:
            self.group = GuestGroup()
            self._processes.spawn_in(lambda context: context, self.group.fd)
            self._processes.limit_hits = self.group.hits
        return self.group

    def _disk(self, limits: dict[str, int | float], size: int) -> None:
        vm_scratch.bound(size, self._kernel)
        limits["disk"] = size

    def _files(self, limits: dict[str, int | float], count: int) -> None:
        self._remember(self.user, self.env, count)
        limits["open_files"] = count

    def _net(self, net: Net | None) -> None:
        if net is None:
            return
        if net.relay is not None:
            self._pass_on(net.relay)
            self._place({"/etc/resolv.conf": vm_front.RESOLVER})
            return
        if self.relay is not None:  # of the machine that this one is a copy of
            raise OSError(errno.EBUSY, "its network is restricted to rules since it was made")
        device = net.device or vm_net.find()
        vm_net.configure(device, net.address, net.mask, net.gateway)
        text = "".join(f"nameserver {address}\n" for address in net.dns)
        self._place({"/etc/resolv.conf": text})

    def _trust(self, authority: str | None) -> None:
        """Have programs trust it, and none that another machine had which this is a copy of."""
        if authority is not None or self.authority is not None:
            vm_certificates.show(authority or "", self._kernel)
        self.authority = authority

    def _pass_on(self, port: int) -> None:
        """Have all that is dialled go to the host from now on. Raises OSError."""
        if self._front is None:  # else of the machine that this one is a copy of
            self._front = vm_front.FrontEnd(self._loop, anyip.capture(), port)
        self.relay = port

    def _pass_on_again(self, port: int) -> None:
        """After an agent that was ended, whose front end may still be ending: until then nothing
        that is dialled gets an answer."""
        try:
            self._pass_on(port)
        except OSError as error:
            say(f"the network cannot be had yet: {error}")
            self._loop.after(_NETWORK_SECONDS, lambda: self._pass_on_again(port))

    # --- what is remembered ---

    def _remember(self, user: int, env: dict[str, str], open_files: int | None) -> None:
        self.user, self.env, self.open_files = user, env, open_files
        self.identity.become(user)

    def _save(self) -> None:
        os.makedirs(STATE, exist_ok=True)
        state = {
            "user": self.user,
            "env": self.env,
            "open_files": self.open_files,
            "workdir": self.workdir,
            "image_env": self.image_env,
            "placed": self._placed,
            "relay": self.relay,
            "authority": self.authority,
        }
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        new = f"{_STATE_FILE}.new"
        with open(os.open(new, flags, 0o600), "wb") as file:
            file.write(json.dumps(state).encode())
        os.rename(new, _STATE_FILE)  # an agent that is ended meanwhile leaves the one before

    # --- operations ---

    def _with_defaults(self, start: Starter) -> Starter:
        def starter(
            channel: Channel, request: dict[str, object], fds: list[int]
        ) -> ChannelOperation | None:
            return start(channel, self.defaults(request), fds)

        return starter

    def defaults(self, request: dict[str, object]) -> dict[str, object]:
        """Returns an exec request with what the sandbox's user has by default."""
        user = request.get("user")
        if user is None:  # left out, or said to be: the agent itself is root
            user = self.user
        cwd = request.get("cwd")
        filled = {**request, "user": user}
        if cwd is None:
            filled["cwd"] = self.workdir
        elif isinstance(cwd, str):
            filled["cwd"] = os.path.join(self.workdir, cwd)
        env = request.get("env") or {}
        if request.get("env_mode", "merge") == "merge" and isinstance(env, dict):
            filled["env_mode"] = "replace"
            first = environment(user) if self.image_env is None else self.image_env
            filled["env"] = {**first, **self.env, **env}
        limits = request.get("limits") or {}
        if self.open_files is not None and isinstance(limits, dict):
            files = limits.get("open_files")
            own = files if isinstance(files, int) else self.open_files
            filled["limits"] = {**limits, "open_files": min(own, self.open_files)}
        return filled

    def _as_root(self, start: Starter) -> Starter:
        def starter(
            channel: Channel, request: dict[str, object], fds: list[int]
        ) -> ChannelOperation | None:
            with self.identity:
                return start(channel, request, fds)

        return starter

    def _counters(self, channel: Channel) -> None:
        group = self.group
        channel.finish(
            "result", counters=group.hits() if group else {}, usage=group.usage() if group else {}
        )


def environment(user: object) -> dict[str, str]:
    """Return what a command starts with, as behind the other walls."""
    name = "root" if user == 0 else "sandbox"
    return {
        "HOME": vm_scratch.HOME,
        "LANG": "C.UTF-8",
        "LOGNAME": name,
        "PATH": _PATH,
        "USER": name,
    }


def _set_clock(unix_ns: int) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, unix_ns)


def _add_user() -> None:
    """An image that was not made by us knows no sandbox."""
    for path, line in zip(("/etc/passwd", "/etc/group"), _PASSWD, strict=True):
        text = b""
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            text = file.read()
        if b"\nsandbox:" not in b"\n" + text:
            os.makedirs("/etc", exist_ok=True)
            gap = b"\n" if text and not text.endswith(b"\n") else b""
            with open(path, "ab") as file:
                file.write(gap + line.encode())
