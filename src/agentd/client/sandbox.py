"""The SDK: a sandbox as an object. Nothing of it is imported before it is used."""

import os
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Unpack

from agentd.client import arguments, build, cassettes, place, wording
from agentd.client.build import SandboxOptions
from agentd.client.cassettes import CassetteFiles
from agentd.client.commands import CommandFailed as CommandFailed  # noqa: PLC0414  its old place
from agentd.client.commands import SandboxCommands
from agentd.client.files import Files
from agentd.client.forward import Forwards, SandboxPorts
from agentd.client.http import address
from agentd.client.network import NetworkControl
from agentd.client.process import Process as Process  # noqa: PLC0414
from agentd.client.signature import options_shown
from agentd.model.enforcement import Enforcement
from agentd.model.errors import NotFound, SandboxError
from agentd.model.result import SandboxInfo

if TYPE_CHECKING:
    from agentd.client.ports import Sandboxes, Service, Snapshot, SnapshotLike
    from agentd.model.api import SandboxView
    from agentd.model.image import ImageView

_NO_FILES = CassetteFiles()


class Sandbox(SandboxCommands):
    """A wall with commands and files behind it. Made by ``create``; ends with ``close``.

    One of a daemon (``url``) outlives this process until its lease ends, unless it is closed.
    """

    def __init__(
        self,
        service: "Service",
        view: "SandboxView",
        *,
        connected: bool = False,
        lasting: bool = False,
        files: CassetteFiles = _NO_FILES,
    ) -> None:
        """``service`` is closed with this. ``lasting``: it outlives this process, so that to forget
        it is no mistake. ``files`` has where to write what it asked."""
        self._files = files
        self._service = service
        self._view = view
        self._connected = connected
        self._lasting = lasting or connected
        self._ended = False
        self._forwards = Forwards()
        self._finalizer = weakref.finalize(
            self, place.forget, service, view.id, self._forwards, self._lasting, os.getpid()
        )

    @classmethod
    @options_shown
    def create(
        cls,
        *,
        url: str | None = None,
        api_key: str | None = None,
        snapshot: "SnapshotLike | str | os.PathLike[str] | None" = None,
        template: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: str | float | None = None,
        wait: str | float | None = None,
        idle_timeout: str | float | None = None,
        on_idle: str | None = None,
        embedded: bool = False,
        **options: Unpack[SandboxOptions],
    ) -> "Sandbox":
        """Make a sandbox that is ready for commands.

        What may be asked for; None, or nothing, takes the default:

        isolation   the least wall that will do: "process", "namespace" (default), "microvm", ...
        backend     one wall by its name, as ``agentd doctor`` lists them
        runtime     the OCI runtime that builds it, as "crun", of a wall that has several
        workspace   "PATH[:ro|rw|cow]" of this machine, at /workspace; cow: changes stay back
        mounts      further folders, each "SOURCE:TARGET[:ro|rw]"
        volumes     named ones, each "NAME:TARGET[:ro|rw]", which outlive it (Client.volumes)
        packages    of PyPI, for its Python, wheels alone: ["numpy", "pandas>=2"]
        net         "none" (default), "host", or what it may reach: ["pypi", "api.example.com"];
                    with "record:FILE" what it asks is written there, once it is closed, and with
                    ["replay:FILE"] it is answered from that, and reaches nothing
        secrets     that it uses and never has: ["TOKEN=env:TOKEN@api.example.com"]
        memory      of all commands together, bytes or "256M"; refused where it cannot be enforced
        cpus        of all commands together, as 0.5 or 2; refused like ``memory``
        pids        processes and threads at once
        disk        of /workspace, /tmp and the like, bytes or "1G"
        open_files  of each process
        timeout     of each command, seconds or "30s"
        output      of each stream of each command, bytes or "10M"
        net_bytes   over a network of rules, all connections and both ways; then they end
        net_rate    of these a second
        user        "root", "sandbox" or a uid inside
        writable    True: all of the root can be written to, /etc and /usr too; the host's stay
        env         variables of every command
        image       an OCI image, or what a virtual machine boots

        ``url`` (else AGENTD_URL) is a daemon's, as unix:PATH or https://HOST:PORT, and ``api_key``
        (else AGENTD_API_KEY) says who asks. Where neither names one, a daemon that listens at its
        usual place is taken, as ``agentd run`` does; else, with ``embedded``, and from a
        ``snapshot`` at a path, the sandbox is one of this process. The ``url``
        of what was made says which.
        Of a ``template``, by the name that the daemon's configuration gives it, are its image, its
        wall, and what it starts; variables and limits may be given beside it.
        From a ``snapshot``, its id or the path it was kept at, it comes up as that sandbox was, and
        only ``env``, ``timeout`` and ``output`` may be given. For a daemon's are a ``name``, by
        which ``connect`` finds it, ``labels``, ``ttl``, the time until it is ended unless it is
        renewed, ``wait``, how long to wait for room in one's quota, and ``idle_timeout``: unused
        for so long it is paused until the next request, or, with ``on_idle`` "end", ended. One of
        a daemon that was not named ends with this object, unless it has a ``ttl``.

        Raises InvalidInput, Refused (what is in the way, and the fix), SandboxError, Unreachable.
        """
        with wording.spoken():
            arguments.flags(embedded=embedded)
            where, named = place.find(url, api_key, snapshot, embedded)
            if name is not None:
                arguments.text(name, "name", 'write it as "build"')
            state = place.state(snapshot, of_daemon=where is not None)
            options["net"], files = cassettes.taken(options.get("net"))
            body = build.sandbox_body(
                snapshot=state,
                template=template,
                name=name,
                labels=labels,
                ttl=ttl,
                wait=wait,
                idle_timeout=idle_timeout,
                on_idle=on_idle,
                **options,
            )
            service = place.service(where)
            try:
                with nullcontext() if where is None or named else wording.found(where):
                    view = service.sandboxes.create(body)
            except BaseException:
                service.close()
                raise
            lasting = where is not None and (named or ttl is not None)
            made = cls(service, view, lasting=lasting, files=files)
            try:
                files.play(service.network, view.id)
            except BaseException:
                made._files = _NO_FILES
                made.kill()
                raise
        wording.tell_unheld(view.enforcement)
        return made

    @classmethod
    def connect(cls, id: str, *, url: str | None = None, api_key: str | None = None) -> "Sandbox":
        """Take up a sandbox that a daemon has, by its id or name; without ``url`` of the daemon at
        its usual place.

        To close it only lets go of it; ``kill`` ends it. Raises NotFound, Unreachable.
        """
        with wording.spoken():
            arguments.text(id, "id", "it looks like sbx-abcdefghijkl")
            return cls._connected_to(url, api_key, lambda sandboxes: sandboxes.get(id))

    @classmethod
    @options_shown
    def get_or_create(
        cls,
        name: str,
        *,
        url: str | None = None,
        api_key: str | None = None,
        template: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: str | float | None = None,
        wait: str | float | None = None,
        idle_timeout: str | float | None = None,
        on_idle: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> "Sandbox":
        """Take up the sandbox that a daemon has by this name, as it is; make it if there is none.

        The options are those of ``create``. To close it only lets go of it, as with ``connect``.
        """
        with wording.spoken():
            arguments.text(name, "name", 'write it as "build"')
            body = build.sandbox_body(
                template=template,
                labels=labels,
                ttl=ttl,
                wait=wait,
                idle_timeout=idle_timeout,
                on_idle=on_idle,
                **options,
            )
            return cls._connected_to(
                url, api_key, lambda sandboxes: sandboxes.get_or_create(name, body)
            )

    @classmethod
    def _connected_to(
        cls, url: str | None, api_key: str | None, find: "Callable[[Sandboxes], SandboxView]"
    ) -> "Sandbox":
        service = place.service(address.find(url, api_key))
        try:
            return cls(service, find(service.sandboxes), connected=True)
        except BaseException:
            service.close()
            raise

    @property
    def id(self) -> str:
        """Return its id, as ``agentd ls`` shows it and ``connect`` takes it."""
        return self._view.id

    @property
    def name(self) -> str | None:
        """Return the name that it was given, at a daemon; None where it has none."""
        return self._view.name or None

    @property
    def url(self) -> str | None:
        """Return the address of the daemon that it is one of; None for one of this process."""
        return self._service.url

    @property
    def info(self) -> SandboxInfo:
        """Return its id, and the backend and level of its wall."""
        return SandboxInfo(self._view.id, self._view.backend, self._view.level)

    @property
    def enforcement(self) -> Enforcement:
        """Return what is in force: for each control what was asked, whether it holds, and how."""
        return self._view.enforcement

    @property
    def fidelity(self) -> str:
        """Return what its snapshots and forks keep: "memory" is its processes and files, "files"
        its files alone; "" where its wall has none."""
        return self._view.fidelity

    @property
    def command(self) -> tuple[str, ...]:
        """Return what its image runs where nobody says what; empty where it started of none."""
        return self._view.command

    @property
    def labels(self) -> Mapping[str, str]:
        """Return the labels that it was created with, at a daemon."""
        return self._view.labels

    @property
    def files(self) -> Files:
        """Return its files, to read and write inside by absolute paths."""
        return Files(self._open.files, self.id)

    @property
    def ports(self) -> "SandboxPorts":
        """Return its TCP ports, for servers inside: addresses here, and connections to them."""
        return SandboxPorts(self._open.ports, self.id, self._forwards)

    @property
    def network(self) -> "NetworkControl":
        """Return its network: what it may reach, if it was made with rules, and connected to."""
        return NetworkControl(self._open.network, self.id)

    def changes(self) -> tuple[str, ...]:
        """List what a copy-on-write workspace has: ``A new``, ``M changed``, ``D gone``."""
        return self._open.sandboxes.changes(self.id)

    def apply(self) -> None:
        """Write the changes of a copy-on-write workspace to the host's directory."""
        self._open.sandboxes.apply(self.id)

    def pause(self) -> None:
        """Stop all that runs in it until ``resume``, and the time of its commands with it.

        Raises Refused where its wall cannot, as with all of the following.
        """
        self._view = self._open.sandboxes.pause(self.id)

    def resume(self) -> None:
        """Let go on what ``pause`` has stopped."""
        self._view = self._open.sandboxes.resume(self.id)

    def snapshot(self, path: str | os.PathLike[str] | None = None) -> "Snapshot":
        """Keep its state as it is now, for ``create(snapshot=...)``; it goes on running.

        Kept at ``path`` until it is deleted; without one, for as long as this process lives. A
        daemon keeps its own, and takes no path. What runs in the background stands still meanwhile,
        and goes on here and in every copy; what is asked of the sandbox meanwhile waits. Raises
        SandboxError while a command that was started from here has not ended: its stream would not
        survive.
        """
        where = None if path is None else arguments.host_path(path, "path")
        return self._open.sandboxes.keep(self.id, where)

    def fork(self, count: int = 1) -> "list[Sandbox]":
        """Make so many copies as it is now, 64 at most: all of them, or none and an error."""
        arguments.integer(count, "count")
        with wording.spoken():
            views = self._open.sandboxes.fork(self.id, count)
        again = self._service.again
        return [type(self)(again(), view, lasting=self._lasting) for view in views]

    def commit(self, name: str) -> "ImageView":
        """Name an OCI image of what it is now, for ``create(image=name)``: the image that it
        started of, and on top what it has changed. It goes on running.

        With ``writable=True`` that is all of its root; what is mounted is left out. Raises Refused
        where it started of no OCI image, and SandboxError while commands run.
        """
        with wording.spoken():
            return self._open.sandboxes.commit(self.id, arguments.text(name, "name", "as mine:1"))

    def ping(self) -> dict[str, object]:
        """Ask the agent inside whether it answers. Raises BackendLost when it is gone."""
        return self._open.sandboxes.ping(self.id)

    def renew(self, ttl: str | float) -> None:
        """Let a daemon end it no sooner than ``ttl``, as "10m", from now."""
        self._view = self._open.sandboxes.renew(self.id, ttl)

    def close(self) -> None:
        """End everything in it, or let go of it if it was ``connect``ed to; idempotent."""
        if not self._connected:
            self.kill()
        elif self._finalizer.detach():
            self._forwards.close()
            self._service.close()

    def kill(self) -> None:
        """End everything in it; idempotent. Nothing inside is asked before. What it asked is
        written, where ``net`` named a file for that: raises OperationFailed where it cannot be."""
        self._finalizer.detach()
        if not self._ended:
            self._ended = True
            self._forwards.close()
            with ExitStack() as last:
                last.callback(self._service.close)
                last.callback(self._end)
                self._files.save(self._service.network, self.id)

    def _end(self) -> None:
        try:
            with suppress(NotFound):  # its lease may have ended it
                self._service.sandboxes.kill(self.id)
        except BaseException:
            self._ended = False  # whoever asks next ends it
            raise

    @property
    def _open(self) -> "Service":
        if self._ended:
            raise SandboxError(f"sandbox {self.id} is ended", remediation="create a new sandbox")
        return self._service

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "ended" if self._ended else self._view.state
        return f"<Sandbox {self.id} {self._view.backend} {state}>"
