"""The daemon itself."""

from collections.abc import Mapping

from msgspec.structs import asdict

from agentd._version import __version__
from agentd.daemon import doctor
from agentd.daemon.observe.observed import observed
from agentd.daemon.sandboxes import templates
from agentd.daemon.service.noun import Noun
from agentd.model.api import BackendView, Stats
from agentd.model.template import TemplateView
from agentd.model.typed import like


class DaemonMachine(Noun):
    """Implements ``model.service.Machine``."""

    def version(self) -> Mapping[str, str]:
        return {"agentd": __version__, "api": "v1"}

    @observed("backends")
    def backends(self) -> tuple[BackendView, ...]:
        self._who.require("read")
        return tuple(
            like(
                BackendView,
                found,
                usable=found.availability.usable,
                blockers=tuple(map(asdict, found.availability.blockers)),
                notes=found.availability.notes,
            )
            for found in doctor.findings()
        )

    @observed("templates")
    def templates(self) -> tuple[TemplateView, ...]:
        self._who.require("read")
        return templates.views(self._parts.config(), self._parts.stats().pool)

    @observed("stats")
    def stats(self) -> Stats:
        self._who.require("read")
        return self._parts.stats()
