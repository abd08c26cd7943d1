"""The service contract, by HTTP: each noun turns its methods into requests to one daemon."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from agentd.client import arguments
from agentd.client.http import calls
from agentd.client.http import client as clients
from agentd.client.http.address import Address
from agentd.client.http.client import HttpClient, segment
from agentd.client.http.commands import HttpCommands, sandbox_path
from agentd.client.http.connection import soon_or_never
from agentd.client.http.files import HttpFiles, pieces
from agentd.client.http.network import HttpNetwork
from agentd.client.http.noun import HttpNoun
from agentd.client.http.secrets import HttpSecrets
from agentd.model.api import (
    ApprovalView,
    AuditHead,
    AuditPage,
    BackendView,
    CallBody,
    CallView,
    CapabilityView,
    CommitBody,
    DecideBody,
    ForkBody,
    KeyBody,
    KeyView,
    LabelsBody,
    RenewBody,
    SandboxBody,
    SandboxPage,
    SandboxView,
    SnapshotView,
    Stats,
    VolumeBody,
    VolumeView,
)
from agentd.model.errors import InvalidInput, NotFound
from agentd.model.events import EventPage, wait_seconds
from agentd.model.image import ImageView
from agentd.model.port import LinkBody, Port, PortLink
from agentd.model.service import Emit
from agentd.model.template import TemplateView

_PAGE = 500
_MAX_RECEIPT = 1 << 20
_AS_USUAL = SandboxBody()


class HttpSandboxes(HttpNoun):
    def create(self, body: SandboxBody = _AS_USUAL, *, cancel: int = -1) -> SandboxView:
        # Who waits by a unix socket needs no key, for that breaks with the daemon alone; without
        # one the daemon gives up the turn of a client that has gone.
        once = body.wait is None or not self._requests.address.path
        return self._requests.call(
            *("POST", "/v1/sandboxes", body),
            into=SandboxView,
            once=once,
            wake=cancel,
            on_wake=None if cancel < 0 else soon_or_never(),
        )

    def get_or_create(self, name: str, body: SandboxBody = _AS_USUAL) -> SandboxView:
        path = f"/v1/sandboxes/{segment(name)}"
        return self._requests.call("PUT", path, body, into=SandboxView)

    def list(
        self,
        *,
        labels: Mapping[str, str] | None = None,
        state: str | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> tuple[SandboxView, ...]:
        asked = [("label", f"{key}={value}") for key, value in arguments.labels(labels).items()]
        asked += [("state", state)] if state is not None else []
        most = arguments.MOST if limit is None else arguments.whole(limit, "limit", 1, 1 << 31)
        found: list[SandboxView] = []
        cursor: str | None = after
        while cursor is not None and len(found) < most:
            query = [*asked, ("limit", str(min(_PAGE, most - len(found))))]
            query += [("cursor", cursor)] if cursor else []
            page = self._requests.call("GET", "/v1/sandboxes", query=query, into=SandboxPage)
            found += page.sandboxes
            cursor = page.next
        return tuple(found)

    def get(self, id: str) -> SandboxView:
        return self._requests.call("GET", sandbox_path(id), into=SandboxView)

    def relabel(self, id: str, labels: Mapping[str, str | None]) -> SandboxView:
        body = LabelsBody(labels=arguments.other_labels(labels))
        return self._requests.call("PATCH", sandbox_path(id), body, into=SandboxView, safe=True)

    def renew(self, id: str, ttl: str | float) -> SandboxView:
        return self._change(id, "renew", RenewBody(ttl=ttl), safe=True)

    def pause(self, id: str) -> SandboxView:
        return self._change(id, "pause")

    def resume(self, id: str) -> SandboxView:
        return self._change(id, "resume")

    def kill(self, id: str) -> None:
        self._requests.call("DELETE", sandbox_path(id), ends=True)

    def snapshot(self, id: str) -> SnapshotView:
        path = f"{sandbox_path(id)}/snapshot"
        return self._requests.call("POST", path, into=SnapshotView)

    def fork(self, id: str, count: int = 1) -> tuple[SandboxView, ...]:
        path, body = f"{sandbox_path(id)}/fork", ForkBody(count=count)
        return self._requests.call("POST", path, body, into=tuple[SandboxView, ...])

    def commit(self, id: str, name: str) -> ImageView:
        path, body = f"{sandbox_path(id)}/commit", CommitBody(name=name)
        return self._requests.call("POST", path, body, into=ImageView)

    def changes(self, id: str) -> tuple[str, ...]:
        path = f"{sandbox_path(id)}/changes"
        return self._requests.call("GET", path, into=tuple[str, ...])

    def apply(self, id: str) -> None:
        self._requests.call("POST", f"{sandbox_path(id)}/apply")

    def keep(self, id: str, path: str | os.PathLike[str] | None) -> "HttpSnapshot":
        if path is not None:
            raise InvalidInput(
                "a daemon keeps its snapshots itself", remediation="leave out the path"
            )
        return HttpSnapshot(self._requests.address, self.snapshot(id))

    def ping(self, id: str) -> dict[str, object]:
        """Ask its agent for its root directory."""
        entry = HttpFiles(self._requests).stat(id, "/")
        return {"root": {"mode": entry.mode, "uid": entry.uid}}

    def _change(
        self, id: str, what: str, body: object = None, *, safe: bool = False
    ) -> SandboxView:
        path = f"{sandbox_path(id)}/{what}"
        return self._requests.call("POST", path, body, into=SandboxView, safe=safe)


class HttpPorts(HttpNoun):
    def open(self, sandbox: str, port: int) -> Port:
        from agentd.client.http.port import HttpPort

        return HttpPort(self._requests, f"{sandbox_path(sandbox)}/tunnels/{port}")

    def link(self, sandbox: str, port: int, *, ttl: str | float = "1h") -> PortLink:
        body = LinkBody(port=port, ttl=ttl)
        return self._requests.call("POST", f"{sandbox_path(sandbox)}/links", body, into=PortLink)


class HttpSnapshots(HttpNoun):
    def list(self) -> tuple[SnapshotView, ...]:
        return self._requests.pages("/v1/snapshots", SnapshotView)

    def get(self, id: str) -> SnapshotView:
        return self._requests.call("GET", f"/v1/snapshots/{segment(id)}", into=SnapshotView)

    def export(self, id: str) -> Iterator[bytes]:
        with self._requests.open("GET", f"/v1/snapshots/{segment(id)}/export") as response:
            yield from pieces(response)

    def delete(self, id: str) -> None:
        self._requests.call("DELETE", f"/v1/snapshots/{segment(id)}")


class HttpVolumes(HttpNoun):
    def create(self, name: str, size: str | int | None = None) -> VolumeView:
        body = VolumeBody(name=name, size=size)
        return self._requests.call("POST", "/v1/volumes", body, into=VolumeView)

    def list(self) -> tuple[VolumeView, ...]:
        found = self._requests.pages("/v1/volumes", VolumeView)
        return tuple(sorted(found, key=lambda view: view.name))

    def get(self, name: str) -> VolumeView:
        return self._requests.call("GET", f"/v1/volumes/{segment(name)}", into=VolumeView)

    def snapshot(self, name: str, new: str) -> VolumeView:
        path = f"/v1/volumes/{segment(name)}/snapshot"
        return self._requests.call("POST", path, VolumeBody(name=new), into=VolumeView)

    def delete(self, name: str) -> None:
        self._requests.call("DELETE", f"/v1/volumes/{segment(name)}")


class HttpCapabilities(HttpNoun):
    def list(self) -> tuple[CapabilityView, ...]:
        return self._requests.pages("/v1/capabilities", CapabilityView)

    def call(
        self,
        capability: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        sandbox: str | None = None,
        create: SandboxBody = _AS_USUAL,
        bundle: str | None = None,
        keep: bool = False,
        emit: Emit | None = None,
        cancel: int = -1,
    ) -> CallView:
        asked = dict(arguments.called(capability, parameters, bundle or ""))
        body = CallBody(
            capability=capability,
            parameters=asked,
            sandbox=sandbox,
            create=create,
            bundle=bundle,
            keep=keep,
        )
        return calls.call(self._requests, body, emit, cancel)

    def request(self, body: bytes, *, emit: Emit | None = None, cancel: int = -1) -> CallView:
        return calls.call(self._requests, body, emit, cancel)


class HttpReceipts(HttpNoun):
    def get(self, id: str) -> bytes:
        with self._requests.open("GET", f"/v1/receipts/{segment(id)}") as response:
            return bytes(response.read(_MAX_RECEIPT))

    def key(self) -> str:
        return self._requests.call("GET", "/v1/receipt-key", into=str)


class HttpKeys(HttpNoun):
    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        ttl: str | float | None = None,
        principal: str | None = None,
    ) -> KeyView:
        body = KeyBody(name=name, scopes=tuple(scopes), ttl=ttl, principal=principal)
        return self._requests.call("POST", "/v1/keys", body, into=KeyView)

    def list(self) -> tuple[KeyView, ...]:
        return self._requests.pages("/v1/keys", KeyView)

    def get(self, id: str) -> KeyView:
        return self._requests.call("GET", f"/v1/keys/{segment(id)}", into=KeyView)

    def revoke(self, id: str) -> None:
        self._requests.call("DELETE", f"/v1/keys/{segment(id)}")


class HttpApprovals(HttpNoun):
    def list(self) -> tuple[ApprovalView, ...]:
        return self._requests.pages("/v1/approvals", ApprovalView)

    def get(self, id: str) -> ApprovalView:
        path = f"/v1/approvals/{segment(id)}"
        return self._requests.call("GET", path, into=ApprovalView)

    def decide(self, id: str, *, allow: bool, note: str = "") -> ApprovalView:
        return self._post(id, "decide", DecideBody(allow=allow, note=note))

    def withdraw(self, id: str) -> ApprovalView:
        return self._post(id, "withdraw")

    def _post(self, id: str, what: str, body: object = None) -> ApprovalView:
        path = f"/v1/approvals/{segment(id)}/{what}"
        return self._requests.call("POST", path, body, into=ApprovalView)


class HttpAudit(HttpNoun):
    def head(self) -> AuditHead:
        return self._requests.call("GET", "/v1/audit/head", into=AuditHead)

    def records(self, start: int = 1, limit: int = 1000) -> AuditPage:
        arguments.whole(start, "start", 1, arguments.MOST)
        query = {"from": start, "limit": arguments.whole(limit, "limit", 1, 1000)}
        return self._requests.call("GET", "/v1/audit/records", query=query, into=AuditPage)


class HttpEvents(HttpNoun):
    def read(self, after: str = "", *, limit: int = 100, wait: str | float = 0) -> EventPage:
        query = {
            "after": after,
            "limit": arguments.whole(limit, "limit", 1, 1000),
            "wait": f"{wait_seconds(wait):g}",
        }
        return self._requests.call("GET", "/v1/events", query=query, into=EventPage)


class HttpMachine(HttpNoun):
    def version(self) -> Mapping[str, str]:
        return self._requests.call("GET", "/v1/version", into=dict[str, str])

    def backends(self) -> tuple[BackendView, ...]:
        return self._requests.call("GET", "/v1/backends", into=tuple[BackendView, ...])

    def templates(self) -> tuple[TemplateView, ...]:
        return self._requests.call("GET", "/v1/templates", into=tuple[TemplateView, ...])

    def stats(self) -> Stats:
        return self._requests.call("GET", "/v1/stats", into=Stats)


class HttpService:
    """Implements ``client.ports.Service``; ``close`` lets go of ``requests`` as it was told."""

    def __init__(self, requests: HttpClient, let_go: "Callable[[HttpClient], None]") -> None:
        self.url = str(requests.address)
        self.requests = requests
        self.sandboxes = HttpSandboxes(requests)
        self.commands = HttpCommands(requests)
        self.files = HttpFiles(requests)
        self.ports = HttpPorts(requests)
        self.network = HttpNetwork(requests)
        self.snapshots = HttpSnapshots(requests)
        self.volumes = HttpVolumes(requests)
        self.secrets = HttpSecrets(requests)
        self.capabilities = HttpCapabilities(requests)
        self.receipts = HttpReceipts(requests)
        self.keys = HttpKeys(requests)
        self.approvals = HttpApprovals(requests)
        self.audit = HttpAudit(requests)
        self.events = HttpEvents(requests)
        self.machine = HttpMachine(requests)
        self._let_go: Callable[[HttpClient], None] | None = let_go

    def again(self) -> "HttpService":
        return shared(self.requests.address)

    def close(self) -> None:
        let_go, self._let_go = self._let_go, None
        if let_go is not None:
            let_go(self.requests)


def shared(address: Address) -> HttpService:
    """Return a service over the process's one client of that daemon."""
    return HttpService(clients.shared(address), clients.release)


def alone(address: Address) -> HttpService:
    """Return a service over a client of its own."""
    return HttpService(HttpClient(address), HttpClient.close)


class HttpSnapshot:
    """A snapshot that the daemon keeps. In a with statement it is deleted at the end."""

    path = None

    def __init__(self, address: Address, view: SnapshotView) -> None:
        self._address = address
        self.id = view.id
        self.fidelity = view.fidelity
        self.created = view.created
        self.size = view.bytes

    @property
    def address(self) -> Address:
        """The daemon that keeps it, and as whom to ask it."""
        return self._address

    @property
    def url(self) -> str:
        return str(self._address)

    def delete(self) -> None:
        """Delete it; sandboxes that were made of it stay as they are. Idempotent."""
        with closing(shared(self._address)) as service, suppress(NotFound):
            service.snapshots.delete(self.id)

    def export(self, path: str | os.PathLike[str]) -> None:
        from agentd.client import exported  # late: few need it

        with closing(shared(self._address)) as service:
            exported.write(service.snapshots.export(self.id), path)

    def __enter__(self) -> "HttpSnapshot":
        return self

    def __exit__(self, *exc: object) -> None:
        self.delete()

    def __repr__(self) -> str:
        return f"<Snapshot {self.id} {self.fidelity} at {self._address}>"
