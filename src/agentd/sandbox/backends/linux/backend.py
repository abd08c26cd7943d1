"""The ``linux`` backend: namespaces, a read-only root, Landlock, seccomp, cgroups."""

import contextlib
import errno
import functools
import os
import socket
import threading

from agentd.guest.zygote.messages import MAX_MESSAGE
from agentd.linux import landlock, privileges, process
from agentd.model.availability import Availability, Blocker
from agentd.model.configuration import USUAL, HostConfiguration
from agentd.model.errors import AgentdError, InvalidInput, SandboxError
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import DEFAULT_IMAGE, SandboxSpec
from agentd.sandbox.backends import cgroups, identity, leases, shared
from agentd.sandbox.backends.cgroups import explained, let_in, own_hierarchy
from agentd.sandbox.backends.child import Ended, await_ready, send, unsent
from agentd.sandbox.backends.identity import Block
from agentd.sandbox.backends.linux import image as images
from agentd.sandbox.backends.linux import kept as keeping
from agentd.sandbox.backends.linux import (
    loans,
    preparing,
    report,
    restoring,
    shared_layer,
    subid_range,
)
from agentd.sandbox.backends.linux.base import NamespaceBackend, beneath, furnish
from agentd.sandbox.backends.linux.born import (
    Ask,
    Born,
    disk_of,
    from_spare,
    group_of,
    release,
    room,
    scratch,
    take_spare,
    uncounted,
)
from agentd.sandbox.backends.linux.cow import OverlayWall
from agentd.sandbox.backends.linux.image import LinuxImageRoot
from agentd.sandbox.backends.linux.loans import Loan
from agentd.sandbox.backends.linux.network import admitted, rest
from agentd.sandbox.backends.linux.nursery import Nursery, adopt
from agentd.sandbox.backends.linux.plan import LinuxPlan, make_plan, with_authority
from agentd.sandbox.backends.linux.reserving import reserve
from agentd.sandbox.backends.linux.shared_layer import SharedLayer
from agentd.sandbox.backends.linux.spares import SpareKind
from agentd.sandbox.backends.linux.subid_range import SubidRange
from agentd.sandbox.backends.linux.wall import LinuxWall

#: Network, what is shown of the host's configuration, and the subordinate ids if there are any.
_Key = tuple[str, HostConfiguration] | tuple[str, HostConfiguration, SubidRange]


class LinuxBackend(NamespaceBackend):
    """``without`` leaves controls out, for the tests that prove what each one stops."""

    name = "linux"
    level = IsolationLevel.NAMESPACE

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self._lock = threading.Lock()
        begun = adopt()
        self._nurseries: dict[_Key, Nursery] = {}
        if begun is not None:
            self._nurseries[begun.net, USUAL] = begun
        self._availability: Availability | None = None

    def requirements(self) -> tuple[str, ...]:
        return (
            "Linux 5.12 or newer",
            "user namespaces",
            "seccomp filters",
            "cgroups for memory and CPU limits",
        )

    def probe(self) -> Availability:
        """Builds the root once for real: what the kernel says then is the answer. One that did not
        work is tried anew: what was in its way may have gone. Raises InvalidInput for wrong ids."""
        if self._availability is not None:
            return self._availability
        found = Availability.of(*self._examine())
        if found.usable:
            self._availability = found
        return found

    def plan(self, spec: SandboxSpec) -> LinuxPlan:
        """As every ``plan``, and raises NotFound where there is no such image."""
        return make_plan(images.found(spec))

    def _launch(self, plan: LinuxPlan, kept: str | None) -> LinuxWall:
        """``kept`` is the state of a snapshot, whose files it begins with."""
        with contextlib.ExitStack() as undo:
            root = self._image_root(plan, undo, kept)
            plan = with_authority(plan if root is None else root.planned(plan))
            nursery, no_range = self._nursery_for(plan)
            taken = leases.take(plan.mounts, undo)
            sources = [loans.open_source(mount, undo) for mount in plan.mounts]
            own_user = nursery.own_users and "ids" not in self._without
            lent = loans.all_of(
                plan.mounts, sources, taken, nursery, plan.limits.disk or 0, own_user=own_user
            )
            shared = None if kept is None else shared_layer.of_fork(kept)
            if shared is not None:
                undo.callback(shared.close)
            special = kept is not None or self._without
            kind = None if special else preparing.kind_of(plan, lent, root)
            spare = None if kind is None else take_spare(nursery, kind, undo)
            entered = root if spare is None else None  # a spare is in its root already
            request = self._request(plan, lent, entered, forked=shared is not None)
            ask = functools.partial(self._pass_request, nursery, request, lent, entered, shared)
            ask_next = functools.partial(self._ask_next, nursery, kind, plan, root)
            if spare is not None:
                born = from_spare(spare, nursery, plan, ask, ask_next, undo)
            else:
                born = self._clone(nursery, plan, lent, ask, undo, kept, shared)
                ask_next()
            given = nursery.subids or no_range
            wall = self._wall(plan, born, lent, nursery, root, given, undo)
            wall.attach_leases(taken)
            undo.pop_all()
            for fd in (*sources, *born.fds[1:]):
                os.close(fd)
            if root is not None:
                root.close()  # the wall has its lease
        if not nursery.alive():  # it ends with its zygote, ready or not
            wall.kill()
            raise Ended("the zygote ended unexpectedly")
        return wall

    def _image_root(
        self, plan: LinuxPlan, undo: contextlib.ExitStack, kept: str | None
    ) -> LinuxImageRoot | None:
        """The root that it starts of; what it holds is freed with ``undo``."""
        return images.of_spec(plan.spec, undo, kept)

    def _clone(
        self,
        nursery: Nursery,
        plan: LinuxPlan,
        lent: list[Loan],
        ask: Ask,
        undo: contextlib.ExitStack,
        kept: str | None,
        shared: SharedLayer | None,
    ) -> Born:
        """A sandbox that is born for this request."""
        block = self._take(nursery)
        listener, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(listener.close)
        copied = kept is not None or any(loan.copy is not None for loan in lent)
        with theirs:
            try:
                if not copied:
                    ask(listener, block)
            except BaseException:
                release(block, ended=True)  # nobody was asked for it yet
                raise
            undo.callback(release, block)
            pending = nursery.spawn(
                theirs,
                scratch(room(plan, lent), shared) if copied else None,
                block,
                whole=plan.uid == 0,
                writable=plan.spec.writable and plan.spec.image == DEFAULT_IMAGE,
            )
        try:
            group, detail = group_of(plan, nursery, undo)  # while the kernel makes its namespaces
            if not copied:
                let_in(listener, group)
        finally:
            fds = pending.answer()
            for fd in fds:
                undo.callback(os.close, fd)
        if copied:  # it waits for its request until they are there
            user = None if block is None else block.id
            if kept is not None and keeping.has_files(kept):
                with explained(group, plan.limits), reserve(nursery, group) as counted:
                    restoring.restore(kept, fds[1], user, counted)
            loans.copy_all(lent, fds[1], user)
            ask(listener, block)
            let_in(listener, group)
        return Born(fds, listener, block, group, detail, shared, copied)

    def _pass_request(
        self,
        nursery: Nursery,
        request: dict[str, object],
        lent: list[Loan],
        root: LinuxImageRoot | None,
        shared: SharedLayer | None,
        listener: socket.socket,
        block: Block | None,
    ) -> None:
        """To the sandbox itself: what its zygote holds, every later sandbox has a copy of."""
        with contextlib.ExitStack() as passed:
            fds = []
            for loan in lent:
                if loan.mounted:
                    fds.append(loans.mount_fd(loan, nursery, block))
                    passed.callback(os.close, fds[-1])
            if root is not None:
                fds.append(root.mount(nursery, block))
                passed.callback(os.close, fds[-1])
            if shared is not None:
                fds.append(shared.lend(block))
                passed.callback(os.close, fds[-1])
            send(listener, request, fds, "sandbox", MAX_MESSAGE)

    def close(self) -> None:
        with self._lock:
            nurseries, self._nurseries = list(self._nurseries.values()), {}
        for nursery in nurseries:
            nursery.close()
        if any(nursery.net == "restricted" for nursery in nurseries):
            rest()

    def _wall(
        self,
        plan: LinuxPlan,
        born: Born,
        lent: list[Loan],
        nursery: Nursery,
        root: LinuxImageRoot | None,
        given: SubidRange | str,
        undo: contextlib.ExitStack,
    ) -> LinuxWall:
        pid = process.pidfd_of_fdinfo(born.fds[0])
        source = beneath(plan, lent, undo)
        with explained(born.group, plan.limits):
            controls, sockets, disk = await_ready(born.listener)
        if plan.cow and not disk:  # its changes could neither be listed nor applied
            raise unsent("host", OSError(errno.ETOOMANYREFS, "its disk"))
        network = admitted(plan, sockets, undo, disk)
        kind = OverlayWall if plan.cow else LinuxWall
        wall = kind(
            pid=pid,
            pidfd=born.fds[0],
            listener=born.listener,
            group=born.group,
            enforcement=report.enforcement(
                plan,
                controls,
                born.group,
                born.detail,
                own_user=born.block is not None,
                given=given,
                digest=nursery.filter_digests[plan.rw, plan.uid == 0],
                shown=len(nursery.configuration),
                lent={loan.mount.target: loan.how for loan in lent},
                image=None if root is None else root.image,
                uncounted=uncounted(born.shared, lent),
            ),
            without_group=born.detail,
            block=born.block,
            workdir=plan.workdir,
        )
        return furnish(wall, disk_of(disk, born, plan, lent, nursery), network, root, source)

    def _request(
        self, plan: LinuxPlan, lent: list[Loan], root: LinuxImageRoot | None, *, forked: bool
    ) -> dict[str, object]:
        # Its descriptor comes behind those of the mounts, which count from 1.
        mounted = 1 + sum(loan.mounted for loan in lent)
        return {
            "image": None if root is None else root.request(mounted, plan),
            "shared": mounted + (root is not None) if forked else None,
            "uid": plan.uid,
            "hostname": plan.spec.hostname,
            "net": plan.spec.net,
            "authority": None if plan.authority is None else plan.authority.certificate,
            "disk": plan.limits.disk,
            "inodes": plan.inodes,
            "pids": cgroups.process_rlimit(plan.limits.pids),
            "open_files": plan.limits.open_files,
            "user_counts": shared.user_counts(),
            "user_rlimits": shared.user_rlimits(),
            "machine_root": self._is_machine_root(),
            "env": plan.env,
            "cow": plan.cow,
            "scratch_fd": None,
            "private_root": plan.private_root,
            "private_programs": plan.spec.private_programs,
            "landlock_abi": landlock.abi_version(),
            "without": sorted(self._without),
            "mounts": loans.requests(lent),
            "rw": plan.rw,
        }

    def _plain(self, net: str) -> dict[str, object]:
        """Return what the zygote needs to rehearse a request with nothing special."""
        plan = make_plan(SandboxSpec(net=net))
        return preparing.common(plan, machine_root=self._is_machine_root())

    def _ask_next(
        self, nursery: Nursery, kind: SpareKind | None, plan: LinuxPlan, root: LinuxImageRoot | None
    ) -> None:
        if kind is not None:
            message = preparing.common(plan, machine_root=self._is_machine_root())
            prepare = functools.partial(preparing.prepare, message, nursery, plan, root)
            nursery.ask_next(kind, prepare)

    def _is_machine_root(self) -> bool:
        """Return whether the kernel takes sandboxes for the machine's root, who owns /proc/sys."""
        own = "ids" not in self._without and identity.available()
        return not own and privileges.is_machine_root()

    def _take(self, nursery: Nursery) -> Block | None:
        return None if "ids" in self._without else identity.take(nursery.ids)

    def _nursery_for(self, plan: LinuxPlan) -> tuple[Nursery, str]:
        """Also says why root of an ordinary user's sandbox has no range of ids, if it has none."""
        net, shown = plan.spec.net, plan.spec.configuration
        given: SubidRange | str = ""
        # What a build makes a layer of has to be read by us.
        if plan.uid == 0 and not (plan.bare or identity.available() or "ids" in self._without):
            given = subid_range.own()
        if isinstance(given, SubidRange):
            nursery = self._nursery(net, shown, given)
            try:
                nursery.wait_ready()
            except SandboxError as error:  # newuidmap may not be what it should be here
                given = error.cause or error.message
            else:
                return nursery, ""
        return self._nursery(net, shown), given

    def _nursery(
        self, net: str, shown: HostConfiguration = USUAL, subids: SubidRange | None = None
    ) -> Nursery:
        key: _Key = (net, shown) if subids is None else (net, shown, subids)
        with self._lock:
            nursery = self._nurseries.get(key)
            if nursery is not None and not nursery.alive():
                del self._nurseries[key]  # also where there is no room for the next one yet
                nursery.close()
                nursery = None
            if nursery is None:
                plain = self._plain(net) if subids is None else None
                nursery = Nursery(net=net, plain=plain, shown=shown, subids=subids)
                self._nurseries[key] = nursery
            return nursery

    def _any_nursery(self) -> Nursery:
        """One that was begun ahead, where there is one: what one can build, all can."""
        with self._lock:
            net = next((nursery.net for nursery in self._nurseries.values()), "none")
        return self._nursery(net)

    def _examine(self) -> tuple[list[Blocker], list[str]]:
        notes = []
        if refused := shared.refused_calls():
            return refused, []
        try:
            self._any_nursery().wait_ready()
            blockers = []
        except InvalidInput:  # no wall is to blame for ids that are said wrong, and none fixes them
            raise
        except (AgentdError, OSError) as error:
            from agentd.linux import probe

            said, fix = str(error), ""
            if isinstance(error, AgentdError) and error.remediation:
                said = f"{error.message}: {error.cause}" if error.cause else error.message
                fix = error.remediation
            blockers = report.blockers(probe.gather(), said, fix)
        hierarchy = own_hierarchy()
        if isinstance(hierarchy, str):
            notes.append(f"no memory or CPU limits: {hierarchy}")
        if not landlock.abi_version():
            notes.append("Landlock is off: the read-only root stands alone")
        return blockers, notes
