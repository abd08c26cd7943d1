"""A network that is restricted to rules, seen from its host: who may be reached is the relay's to
decide, at sockets that the sandbox made before anything ran in it."""

import contextlib
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentd.linux import anyip
from agentd.linux.net import namespace_cookie
from agentd.linux.rights import close_all
from agentd.model.egress import EgressBounds
from agentd.model.enforcement import Control
from agentd.model.errors import Refused, SandboxError
from agentd.model.secret import SecretBinding, SecretValue
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.linux import report
from agentd.sandbox.backends.linux.plan import LinuxPlan, egress_table

if TYPE_CHECKING:
    from agentd.egress.admitted import Admitted
    from agentd.egress.asked import Asker
    from agentd.egress.authority import Authority
    from agentd.egress.keeper import RelayKeeper
    from agentd.egress.terminating import Reading
    from agentd.sandbox.backends.linux.wall import LinuxWall
    from agentd.sandbox.backends.vm.machine import MachineWall

_STREAM, _DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
_SHAPES = (
    [(socket.AF_INET, _STREAM), (socket.AF_INET, _DATAGRAM)],
    [
        *((socket.AF_INET, _STREAM), (socket.AF_INET6, _STREAM)),
        *((socket.AF_INET, _DATAGRAM), (socket.AF_INET6, _DATAGRAM)),
    ],
)
_NO_RULES = "it was made with another network than one that is restricted to rules"
_PORTS = {_STREAM: anyip.PORT, _DATAGRAM: anyip.DNS_PORT}
#: What ``Networked``, ``Asks``, ``HoldsSecrets``, ``HasCassette`` and ``Served`` have in all,
#: beside ``set_network``.
_METHODS = (
    *("connections", "count_for", "set_asker", "answer", "refuse_open"),
    *("give_secrets", "held_secrets", "cassette", "play", "is_served"),
)


class SandboxNetwork:
    """Thread-safe, as the keeper is."""

    def __init__(
        self,
        admitted: "Admitted",
        secrets: Sequence[SecretBinding] = (),
        authority: "Authority | None" = None,
        held: Sequence[socket.socket] = (),
        how: str = "own namespace",
    ) -> None:
        """Takes ownership of ``admitted``, and of ``held``, which have what it dials refused at
        once where no relay is to be had. ``secrets`` are used by the sandbox, and ``authority`` is
        whom its programs trust; ``how`` there is no other way out is told in the report."""
        self._admitted, self._how = admitted, how
        self._held = held
        self._authority = authority
        self._secrets = secrets
        self._values: dict[str, SecretValue] = {}
        self.connections, self.count_for = admitted.connections, admitted.count_for
        self.cassette = admitted.recorded
        self.answer, self.refuse_open = admitted.asked.answer, admitted.asked.refuse_open

    def set(self, egress: Sequence[str], bounds: EgressBounds) -> Control:
        """Let these rules hold from now on. Raises InvalidInput for one that is none, Refused for
        more than ``bounds``, and for requests to hosts that its authority is not for."""
        from agentd.sandbox.backends import certificates

        table = egress_table(egress, bounds, self._secrets)
        certificates.check_covered(table, self._authority)
        self._admitted.set(table)
        return report.network("restricted", egress, self._secrets, self._how, bounds)

    def is_served(self) -> bool:
        return not self._admitted.closed

    def set_asker(self, asker: "Asker") -> None:
        self._admitted.asked.asker = asker

    def give_secrets(self, values: Mapping[str, SecretValue]) -> None:
        from agentd.egress.terminator.credentials import pack_secrets  # late: few need it

        self._values = {each.name: values[each.name] for each in self._secrets}
        self._admitted.give_secrets(pack_secrets(self._secrets, self._values))

    def held_secrets(self) -> dict[str, SecretValue]:
        return dict(self._values)

    @property
    def certificate(self) -> str | None:
        """Whom its programs are to trust, PEM; None where nothing is read."""
        return None if self._authority is None else self._authority.certificate

    def play(self, path: str) -> None:
        """Answer from the cassette at ``path``. Raises InvalidInput for what is none, and for hosts
        that no rule has; Refused where nothing is replayed."""
        from agentd.egress.cassettes import playable, reading
        from agentd.egress.table import EgressTable
        from agentd.model.cassette import MAX_CASSETTE, check_hosts

        table = EgressTable(self._admitted.table)
        if not table.replays:
            raise Refused(
                "the sandbox replays nothing", remediation="make one whose net begins with replay"
            )
        with reading, open(path, "rb") as file:
            data, endpoints = playable(file.read(MAX_CASSETTE + 1))
        check_hosts(endpoints, lambda *to: table.of_name(*to).allowed)
        self._admitted.play(data)

    def close(self) -> None:
        self._values = {}
        self._admitted.close()
        for sock in self._held:
            sock.close()


def give_abilities(wall: "LinuxWall | MachineWall[Any]", network: SandboxNetwork | None) -> None:
    """Makes the methods of a network those of its wall, which no other wall has: whoever stands for
    one and hands on what it is asked has them then, or not. Without one, says why it lacks them."""
    if network is None:
        wall.lacks = {**wall.lacks, "network": _NO_RULES}
        return

    def set_network(egress: tuple[str, ...], egress_bounds: EgressBounds) -> Control:
        told = network.set(egress, egress_bounds)
        wall.enforcement = {**wall.enforcement, "network": told}
        return told

    given = {name: getattr(network, name) for name in _METHODS}
    vars(wall).update(given, set_network=set_network)


def admitted(
    plan: LinuxPlan,
    sockets: Sequence[socket.socket],
    undo: contextlib.ExitStack,
    disk: Sequence[int] = (),
) -> SandboxNetwork | None:
    """Give the keeper what a sandbox passed; None where its network is none of rules. Takes
    ownership of ``sockets``. Raises SandboxError; ``disk``, what came along, is closed then."""
    if plan.table is None:
        return None
    try:
        asked = [sock for sock in sockets if sock.getsockname()[1]]
        held = sockets[len(asked) :]
        _check(asked, held)
        own = plan.authority
        admitted = relay().admit(asked, plan.table, reading(own, plan.spec.egress_bounds))
        network = SandboxNetwork(admitted, plan.spec.secrets, own, held)
    except BaseException:
        for sock in sockets:
            sock.close()
        close_all(disk)
        raise
    undo.callback(network.close)
    return network


def reading(authority: "Authority | None", bounds: EgressBounds) -> "Reading | None":
    """Return what the terminator needs of a sandbox; None where nothing is read."""
    if authority is None:
        return None
    from agentd.egress.terminating import Reading

    return Reading(authority, ca_file=bounds.ca_file)


def rest() -> None:
    """End this process's relay where no sandbox needs it any more."""
    relay().rest()


def relay() -> "RelayKeeper":
    """Return this process's keeper, whose relay has an id of its own where sandboxes have."""
    from agentd.egress import keeper

    return keeper.shared(identity.take)


def _check(sockets: Sequence[socket.socket], held: Sequence[socket.socket]) -> None:
    """They are what was asked for, and none of them is of the network that we are in ourselves.
    ``held``, one at most, has no address."""
    found = [(sock.family, sock.type) for sock in sockets]
    ports = [sock.getsockname()[1] for sock in sockets]
    kinds = [_PORTS[kind] for _, kind in found]
    if found not in _SHAPES or ports != kinds or len(held) > 1:
        raise SandboxError(
            "the sandbox did not pass the sockets of its network",
            cause=f"it passed {len(sockets)}",
            remediation="close some descriptors, or raise the limit of open files (ulimit -n)",
        )
    with socket.socket(socket.AF_INET, _DATAGRAM) as ours:
        own = namespace_cookie(ours)
    if own is not None and any(namespace_cookie(sock) == own for sock in (*sockets, *held)):
        raise SandboxError("the sandbox passed a socket of the host's network")
