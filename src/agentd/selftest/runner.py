"""Runs the attacks behind each wall, through the pipeline, as any caller's commands are run."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from agentd.daemon.pipeline import Pipeline
from agentd.model.availability import Blocker
from agentd.model.enforcement import Enforcement
from agentd.model.errors import AgentdError, BackendLost, GuestError, Refused, Unavailable
from agentd.model.isolation import IsolationLevel
from agentd.model.limits import Limits
from agentd.model.mount import WORKSPACE, Mount, MountMode
from agentd.model.principal import Principal, local
from agentd.model.result import Result
from agentd.model.spec import DEFAULT_IMAGE, ExecRequest, Pty, SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.ports import Backend
from agentd.selftest.attack import UNREPORTED, Attack, AttackOutcome, Judged
from agentd.selftest.attacks import ATTACKS
from agentd.selftest.planted import Planted, plant
from agentd.selftest.prelude import source
from agentd.selftest.report import AttackRow, BackendReport, SelftestReport, Verdict

QUICK = ("landlock", "linux")
_ROOTED = (IsolationLevel.NAMESPACE, IsolationLevel.USERSPACE_KERNEL)
# Whom an image knows or not: what it says of its own user is no part of what is attacked.
_USER_OF_AN_IMAGE = "1000"
_SECONDS = 120.0  # of one attack; most take a tenth of one, in an emulated machine that is busy ten
#: Called with the backend's name and each row as it comes.
Told = Callable[[str, AttackRow], None]


def default_backends(*, thorough: bool, image: str = DEFAULT_IMAGE) -> tuple[str, ...]:
    """List all walls where ``thorough``, third parties' too, else the two that start at once. With
    an image, those of them that take one."""
    ours = (name for name, known in backends.BUILTIN.items() if known.level)
    found = (*ours, *backends.third_parties()) if thorough else QUICK
    return tuple(name for name in found if image == DEFAULT_IMAGE or backends.images(name))


def selftest(
    pipeline: Pipeline,
    names: Sequence[str] = (),
    *,
    thorough: bool = False,
    image: str = DEFAULT_IMAGE,
    told: Told = lambda *_: None,
    attacks: Iterable[Attack] = ATTACKS,
) -> SelftestReport:
    """Behind the walls ``names``, or the default ones, in sandboxes of ``image``. The pipeline's
    manager must be fresh.

    Raises InvalidInput for a backend nobody has, NotFound for such an image, OSError where the host
    has no room for what is laid out for the attacks.
    """
    from agentd.linux import probe

    chosen = tuple(dict.fromkeys(names)) or default_backends(thorough=thorough, image=image)
    suite = [attack for attack in attacks if thorough or not attack.thorough]
    reports = [_of(pipeline, name, image, suite, told) for name in chosen]
    tried = [report for report in reports if report.usable]
    missing = bool(names) and len(tried) < len(reports)
    passed = bool(tried) and not missing and all(report.held for report in tried)
    return SelftestReport(probe.gather().as_dict(), tuple(reports), passed, image)


def _of(
    pipeline: Pipeline, name: str, image: str, suite: Sequence[Attack], told: Told
) -> BackendReport:
    try:
        backend = pipeline.manager.backend(name)
    except Unavailable as error:  # a third party's that cannot be loaded
        return BackendReport(name, "unknown", False, (Blocker(error.message, error.remediation),))
    with plant() as planted:
        return _behind(_Yard(pipeline, backend, image, planted), suite, told)


def _behind(yard: "_Yard", suite: Sequence[Attack], told: Told) -> BackendReport:
    backend = yard.backend
    availability = backends.examined(backend)
    level = backend.level.label
    if not availability.usable:
        return BackendReport(backend.name, level, False, tuple(availability.blockers))
    rows = []
    with yard:
        if blocker := yard.blocker():
            return BackendReport(backend.name, level, False, (blocker,))
        for attack in suite:
            row = _attack(yard, attack)
            told(backend.name, row)
            rows.append(row)
    return BackendReport(backend.name, level, True, (), tuple(rows))


def _attack(yard: "_Yard", attack: Attack) -> AttackRow:
    started = time.monotonic()
    controls: tuple[str, ...] = ()
    try:
        found = yard.controls(attack)
        if found is None:
            why = attack.otherwise or f"level {yard.backend.level.label} promises nothing here"
            return AttackRow(attack.name, (), Verdict.NOT_APPLICABLE, why)
        controls = found
        if why := attack.absent(yard.planted):
            return AttackRow(attack.name, controls, Verdict.NOT_APPLICABLE, why)
        verdict, detail = yard.judge(attack, controls)
    except Refused as refusal:
        # Only of limits, a mount, and rules: it said beforehand that it cannot have it.
        mounted = attack.programs or attack.shared
        promised = attack.limits == Limits() and not mounted and not attack.rules
        verdict = Verdict.UNDECIDED if promised else Verdict.NOT_APPLICABLE
        detail = f"refused: {refusal}"
    except (BackendLost, GuestError) as error:
        verdict, detail = Verdict.THROUGH, f"the sandbox broke: {error}"
    except backends.anything(yard.backend.name) as error:
        verdict, detail = Verdict.UNDECIDED, str(error) or type(error).__name__
    return AttackRow(attack.name, controls, verdict, detail, (time.monotonic() - started) * 1000)


@dataclass
class _Yard:
    """The sandboxes of one wall, made as they are needed and kept while they are alike."""

    pipeline: Pipeline
    backend: Backend
    image: str
    planted: Planted
    _boxes: dict[bytes, SandboxHandle] = field(default_factory=dict)

    def __enter__(self) -> "_Yard":
        return self

    def __exit__(self, *exc: object) -> None:
        while self._boxes:
            self.pipeline.close(self._boxes.popitem()[1])

    def blocker(self) -> Blocker | None:
        """Return why no attack can be tried in the image, if one was named."""
        if self.image == DEFAULT_IMAGE:
            return None
        request = ExecRequest(("python3", "-c", "import ctypes"), timeout=_SECONDS)
        try:
            with self._box(_plain(self.backend, self.image), fresh=False) as box:
                ended = self.pipeline.execute(_principal(), box, request)
        except Refused as refusal:
            return Blocker(refusal.message, refusal.remediation)
        if ended.status == "ok":
            return None
        what = f"the image {self.image} has no python3 with ctypes, which attacks are written in"
        return Blocker(what, "name an image that has one, such as python:3.13-slim")

    def controls(self, attack: Attack) -> tuple[str, ...] | None:
        """Those that must stop it: what the level promises, or else what the wall itself says that
        it has. None where neither has any."""
        promised = attack.stopped_by.get(self.backend.level)
        if promised is not None and (not promised or set(promised) & UNREPORTED):
            return promised
        with self._box(_plain(self.backend, self.image), fresh=False) as box:
            told = dict(box.enforcement)
        if promised is not None and told.keys() & set(promised):
            return promised
        held = {name for name, control in told.items() if control.enforced}
        return tuple(name for name in attack.controls if name in held) or promised

    def judge(self, attack: Attack, controls: Sequence[str]) -> Judged:
        self.planted.arrived()  # what came for an earlier one is not this one's
        spec = _spec(attack, _plain(self.backend, self.image), self.backend, self.planted)
        with self._box(spec, fresh=attack.fresh) as box:
            result = self._run(box, attack)
            verdict, detail = attack.judge(
                AttackOutcome(_said(result.stdout), result, self.planted)
            )
            if verdict is Verdict.STOPPED and not self._alive(box):
                verdict, detail = Verdict.THROUGH, "the sandbox ended by it"
            held = _held(controls, box.enforcement)
        if attack.after is not None and verdict is Verdict.STOPPED:
            verdict, detail = attack.after(self.planted)
        return verdict, "; ".join(filter(None, (detail, held)))

    @contextlib.contextmanager
    def _box(self, spec: SandboxSpec, *, fresh: bool) -> Iterator[SandboxHandle]:
        if fresh:
            box = self.pipeline.open(_principal(), spec)
            try:
                yield box
            finally:
                self.pipeline.close(box)
            return
        key = msgspec.json.encode(spec)
        if key not in self._boxes:
            self._boxes[key] = self.pipeline.open(_principal(), spec)
        box = self._boxes[key]
        try:
            yield box
        except BaseException:
            self.pipeline.close(self._boxes.pop(key))
            raise
        if not box.wall.alive():
            self.pipeline.close(self._boxes.pop(key))

    def _run(self, box: SandboxHandle, attack: Attack) -> Result:
        request = ExecRequest(
            ("python3", "-I", "-c", source(attack.script), *attack.args(self.planted)),
            timeout=_SECONDS,
            output_limit=attack.output_limit,
            pty=Pty() if attack.terminal and self._has_terminals() else None,
        )
        return self.pipeline.execute(_principal(), box, request)

    def _has_terminals(self) -> bool:
        """The process level has none: without one the requests must be refused all the same."""
        return self.backend.level is not IsolationLevel.PROCESS

    def _alive(self, box: SandboxHandle) -> bool:
        """Return whether it still runs commands."""
        request = ExecRequest(("true",), timeout=_SECONDS)
        try:
            return self.pipeline.execute(_principal(), box, request).status == "ok"
        except AgentdError:
            return False


def _plain(backend: Backend, image: str) -> SandboxSpec:
    spec = SandboxSpec(isolation=IsolationLevel.NONE, backend=backend.name)
    if image == DEFAULT_IMAGE:
        return spec
    return msgspec.structs.replace(spec, image=image, user=_USER_OF_AN_IMAGE)


def _spec(attack: Attack, plain: SandboxSpec, backend: Backend, planted: Planted) -> SandboxSpec:
    spec = msgspec.structs.replace(plain, limits=attack.limits)
    if attack.rules:
        spec = msgspec.structs.replace(spec, net="restricted", egress=(planted.rule(),))
    if attack.root and backend.level in _ROOTED:
        rooted = msgspec.structs.replace(spec, user="root")
        # Not each wall can: then it is tried as the user that it gives.
        with contextlib.suppress(Refused):
            backend.plan(rooted)
            spec = rooted
    if attack.shared:
        mount = Mount(planted.shared, WORKSPACE, MountMode.RW)
        spec = msgspec.structs.replace(spec, mounts=(mount,))
    if attack.programs and planted.program is not None:
        folder = os.path.dirname(planted.program)
        # A wall without namespaces shows a folder at its own path only.
        target = folder if backend.level <= IsolationLevel.PROCESS else "/programs"
        mount = Mount(folder, target, MountMode.RO)
        spec = msgspec.structs.replace(spec, mounts=(mount,))
    return spec


def _held(controls: Sequence[str], enforcement: Enforcement) -> str:
    """Return what the sandbox's own report says of those controls that are not in force."""
    off = []
    for name in controls:
        if name in UNREPORTED:
            continue
        control = enforcement.get(name)
        if control is None or not control.enforced:
            off.append(f"{name}: {control.detail if control else 'not in the report'}")
    return f"not in force: {', '.join(off)}" if off else ""


def _said(output: bytes) -> dict[str, str]:
    lines = output.decode(errors="replace").splitlines()
    return dict(line.rstrip("\r").split("=", 1) for line in lines if "=" in line)


def _principal() -> Principal:
    return local(f"uid:{os.geteuid()}")
