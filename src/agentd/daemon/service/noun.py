"""What the nouns of a daemon's service have in common: the caller, and the way to a sandbox."""

from typing import TYPE_CHECKING

import msgspec

from agentd.daemon.admission import acts
from agentd.model import context
from agentd.policy.scopes import scope_of

if TYPE_CHECKING:
    from agentd.daemon.admission.acts import Act
    from agentd.daemon.admission.admission import Admission
    from agentd.daemon.sandboxes.live import Live
    from agentd.daemon.service.parts import Parts
    from agentd.model.principal import Principal


class Noun:
    """Bound to its caller. Thread-safe."""

    def __init__(self, parts: "Parts", caller: "Principal") -> None:
        self._parts = parts
        self._who = caller
        self._observer = parts.observer

    def _live(self, scope: str, id_: str) -> "Live":
        """Raises Forbidden, NotFound."""
        sandboxes = self._parts.sandboxes
        named = sandboxes.named(self._who, id_) if not id_.startswith("sbx-") else None
        if named is not None:  # the log has its id all the same, of what is refused, too
            context.sandbox.set(named.id)
        self._who.require(scope)
        return sandboxes.get(self._who, id_)

    def _open(
        self, id_: str, name: str, doing: str, operation: str = "", /, **parameters: object
    ) -> "tuple[Live, Admission]":
        """Return a sandbox, and what is to be done there in a capability's words, ``name``, which
        may stand for more than one ``operation``.

        Raises Forbidden, NotFound, Conflict (``doing`` says what for), and what the policy refuses.
        """
        live = self._live(scope_of(name), id_)
        live.require_running(doing)
        return live, self._judge(live, name, operation, **parameters)

    def _judge(
        self, live: "Live", name: str, operation: str = "", /, **parameters: object
    ) -> "Admission":
        act = self._act(live, name, **parameters)
        if operation:
            act = msgspec.structs.replace(act, how={"operation": operation})
        return self._parts.control.gate.operation(act, live.handle)

    def _act(self, live: "Live", name: str, **parameters: object) -> "Act":
        return acts.operation(self._who, name, live.handle, live.record.labels, **parameters)
