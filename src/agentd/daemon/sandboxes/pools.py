"""The sandboxes that a daemon keeps ready: of the pools of its configuration, and of templates.

Each template has a pool of its own, with a thread of its own: one that does not come up holds up no
other.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentd.daemon.sandboxes.shelves import images, of_template, shelves
from agentd.daemon.sandboxes.starting import bring_up, stands
from agentd.model.errors import AgentdError
from agentd.sandbox import guard
from agentd.sandbox.abilities import LEASED
from agentd.sandbox.pool import SandboxPool, ShelfSpec

if TYPE_CHECKING:
    from agentd.daemon.admission.gate import Gate
    from agentd.daemon.config.schema import Config, TemplateSettings
    from agentd.model.spec import SandboxSpec
    from agentd.sandbox.handle import SandboxHandle
    from agentd.sandbox.manager import Manager

_GRACE = 60.0
# Between looks at what the images' names mean by now.
_LOOK_SECONDS = 2.0


class _TemplatePool:
    def __init__(
        self,
        template: "TemplateSettings",
        create: "Callable[[TemplateSettings, int, SandboxSpec], SandboxHandle]",
        destroy: "Callable[[SandboxHandle], None]",
    ) -> None:
        self.template = template
        self._closing = os.eventfd(0, os.EFD_CLOEXEC)
        self.pool = SandboxPool((), partial(create, template, self._closing), destroy)

    def close(self) -> None:
        os.eventfd_write(self._closing, 1)  # nobody waits for what is just coming up
        self.pool.close()
        os.close(self._closing)


class Pools:
    """Thread-safe. Owns what it made until it is claimed."""

    def __init__(
        self,
        config: "Callable[[], Config]",
        manager: "Manager",
        gate: "Gate",
        report: Callable[..., object],
    ) -> None:
        self._config = config
        self._manager = manager
        self._gate = gate
        self._report = report
        self._plain = SandboxPool((), self._create, manager.destroy)
        self._of: dict[str, _TemplatePool] = {}  # replaced as a whole
        self._lock = threading.Lock()  # held while it is
        self._images: dict[str, str] | None = None  # None: it is not as it is to be
        self._look_at = 0.0
        self._troubles: dict[str, str] = {}  # that were told, by template
        self._closed = False

    def claim(self, spec: "SandboxSpec") -> "SandboxHandle | None":
        """Do as ``SandboxPool.claim``: what its template has begun still stands."""
        if not spec.template:
            return self._plain.claim(spec)
        kept = self._of.get(spec.template)
        while kept is not None and (handle := kept.pool.claim(spec)) is not None:
            if handle.begun is None or stands(handle):
                return handle
            with contextlib.suppress(AgentdError):  # its lease ends what could not be ended
                self._manager.destroy(handle)
        return None

    def sizes(self) -> dict[str, int]:
        """Return how many are ready: by image and level, and by "template/NAME"."""
        of = {f"template/{n}": sum(one.pool.sizes().values()) for n, one in self._of.items()}
        return self._plain.sizes() | of

    @property
    def works(self) -> bool:
        return self._plain.works and all(one.pool.works for one in self._of.values())

    def reshape(self) -> None:
        """Keep ready what the configuration says now. What stands ready and still fits is kept."""
        with self._lock:
            if self._closed:
                return
            config, self._images = self._config(), None
            meant = images(config)
            self._plain.reshape(shelves(config, self._gate))
            before, self._of = self._of, self._reshaped(config)
            self._images = meant  # not before: what failed is tried again
            for name, one in before.items():
                if self._of.get(name) is not one:
                    one.close()

    def want(self) -> None:
        """Do as ``reshape``; where that fails, no thread is left, say, it is told and tried again:
        what was there is still kept ready."""
        try:
            self.reshape()
        except Exception as error:
            guard.tell(error)

    def look(self) -> None:
        """Begin anew with images whose names mean others than before; now and then."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + _LOOK_SECONDS
        # Where somebody does so just now, the daemon's timer does not wait for that.
        if not self._lock.locked() and images(self._config()) != self._images:
            self.reshape()

    def close(self) -> None:
        """Destroy what was not claimed; idempotent."""
        with self._lock:
            self._closed = True
            of, self._of = self._of, {}
        for one in of.values():
            one.close()
        self._plain.close()

    def _reshaped(self, config: "Config") -> dict[str, _TemplatePool]:
        of: dict[str, _TemplatePool] = {}
        with contextlib.ExitStack() as undo:
            for template in config.template:
                if not template.max:
                    continue
                kept = self._of.get(template.name)
                if kept is None or kept.template != template:  # what it starts may be another now
                    kept = _TemplatePool(template, self._create_of, self._manager.destroy)
                    undo.callback(kept.close)
                kept.pool.reshape(self._shelf(template, config))
                of[str(template.name)] = kept
            undo.pop_all()
        return of

    def _shelf(self, template: "TemplateSettings", config: "Config") -> list[ShelfSpec]:
        """None where no request could have it now: its image is not there, say."""
        try:
            return [of_template(template, config, self._gate)]
        except AgentdError as error:
            self._tell(template.name, error)
            return []

    def _create(self, spec: "SandboxSpec") -> "SandboxHandle":
        oldest = max((float(pool.ttl) for pool in self._config().pool), default=0.0)
        try:
            handle = self._manager.create(spec)
        except AgentdError as error:
            self._tell("", error)
            raise
        _lease(handle, oldest)
        return handle

    def _create_of(
        self, template: "TemplateSettings", closing: int, spec: "SandboxSpec"
    ) -> "SandboxHandle":
        try:
            handle = self._built(spec)
            try:
                _lease(handle, float(template.ready_timeout) + float(template.ttl))
                handle.begun = bring_up(handle, template, closing)
            except BaseException:
                self._manager.destroy(handle)
                raise
        except AgentdError as error:
            if not self._closed:
                self._tell(template.name, error)
            raise
        self._troubles.pop(template.name, None)
        return handle

    def _built(self, spec: "SandboxSpec") -> "SandboxHandle":
        if not spec.packages:
            return self._manager.create(spec)
        from agentd.daemon.packages import provide, rules  # late: few have any

        return provide.created(self._manager, spec, rules.of(self._config()))

    def _tell(self, name: str, error: AgentdError) -> None:
        if self._troubles.get(name) != str(error):  # it is tried again, and again
            self._troubles[name] = str(error)
            about = {"template": name} if name else {}
            self._report("no sandbox can be kept ready", error=str(error), **about)


def _lease(handle: "SandboxHandle", seconds: float) -> None:
    leased = LEASED.of(handle.wall)
    if leased is not None:
        leased.renew(seconds + _GRACE)
