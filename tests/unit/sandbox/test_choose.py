from types import SimpleNamespace

import pytest

from agentd.model.availability import Availability, Blocker
from agentd.model.errors import InvalidInput, Refused, Unavailable
from agentd.model.isolation import IsolationLevel
from agentd.model.spec import SandboxSpec
from agentd.sandbox import backends
from agentd.sandbox.choose import choose, describe


class Fake:
    def __init__(self, name, level, blockers=(), refusal=None, images=False):
        self.name, self.level, self.images = name, level, images
        self.blockers, self.refusal = list(blockers), refusal
        self.probed = 0

    def probe(self):
        self.probed += 1
        return Availability.of(self.blockers, [])

    def plan(self, spec):
        if self.refusal:
            raise self.refusal
        return SimpleNamespace(spec=spec)


@pytest.fixture
def walls(monkeypatch):
    few = {name: backends.BUILTIN[name] for name in ("host", "landlock", "linux")}
    monkeypatch.setattr(backends, "BUILTIN", few)
    return {
        "host": Fake("host", IsolationLevel.NONE),
        "landlock": Fake("landlock", IsolationLevel.PROCESS),
        "linux": Fake("linux", IsolationLevel.NAMESPACE),
    }


@pytest.mark.parametrize(
    ("level", "name"),
    [("none", "host"), ("process", "landlock"), ("namespace", "linux")],
)
def test_the_cheapest_wall_that_satisfies_wins(walls, level, name):
    spec = SandboxSpec(isolation=IsolationLevel.parse(level))
    assert choose(spec, walls.__getitem__).backend.name == name


def test_a_blocked_wall_gives_way_to_a_stronger_one_and_never_to_a_weaker(walls):
    walls["landlock"].blockers.append(Blocker("Landlock is off", "boot with it"))
    spec = SandboxSpec(isolation=IsolationLevel.PROCESS)
    assert choose(spec, walls.__getitem__).backend.name == "linux"
    assert walls["host"].probed == 0


def test_a_refused_plan_gives_way_to_a_stronger_wall(walls):
    walls["landlock"].refusal = Refused("cannot mount", remediation="use another")
    spec = SandboxSpec(isolation=IsolationLevel.PROCESS)
    assert choose(spec, walls.__getitem__).backend.name == "linux"


def test_the_refusal_has_every_blocker_and_fix_in_the_doctors_words(walls):
    blocked = Blocker("user namespaces are switched off", "sysctl -w user.max_user_namespaces=1")
    walls["linux"].blockers.append(blocked)
    walls["landlock"].refusal = Refused("too small", cause="no disk", remediation="drop --disk")
    with pytest.raises(Unavailable) as caught:
        choose(SandboxSpec(isolation=IsolationLevel.PROCESS), walls.__getitem__)
    what, fix = describe("linux", blocked)
    assert caught.value.message == "no backend here gives isolation process or stronger"
    assert caught.value.cause == f"landlock: too small: no disk; {what}"
    assert caught.value.remediation == f"landlock: drop --disk; {fix}"


def test_no_wall_of_that_strength(walls):
    with pytest.raises(Unavailable, match=r"isolation microvm or stronger.*agentd doctor"):
        choose(SandboxSpec(isolation=IsolationLevel.MICROVM), walls.__getitem__)


def test_a_weaker_wall_that_would_do_is_named_whoever_brings_it(walls, monkeypatch):
    walls["kernel"] = Fake("kernel", IsolationLevel.USERSPACE_KERNEL)
    monkeypatch.setattr(backends, "third_parties", lambda: ("kernel",))
    spec = SandboxSpec(isolation=IsolationLevel.MICROVM)
    with pytest.raises(Unavailable, match="--isolation userspace-kernel works here"):
        choose(spec, walls.__getitem__)
    walls["kernel"].blockers.append(Blocker("broken", "mend it"))
    with pytest.raises(Unavailable, match="--isolation namespace works here"):
        choose(spec, walls.__getitem__)


def test_whoever_is_ended_as_a_weaker_wall_is_looked_at_ends(walls, monkeypatch):
    def ended():
        raise SystemExit(143)

    monkeypatch.setattr(walls["linux"], "probe", ended)
    with pytest.raises(SystemExit):
        choose(SandboxSpec(isolation=IsolationLevel.MICROVM), walls.__getitem__)


@pytest.mark.parametrize(("usable", "name"), [(True, "firecracker"), (False, "qemu")])
def test_a_microvm_is_firecrackers_where_that_works(walls, monkeypatch, usable, name):
    known = {
        "firecracker": backends.Known(IsolationLevel.MICROVM, ""),
        "qemu": backends.Known(IsolationLevel.MICROVM, ""),
    }
    monkeypatch.setattr(backends, "BUILTIN", {**backends.BUILTIN, **known})
    walls |= {one: Fake(one, IsolationLevel.MICROVM) for one in known}
    if not usable:
        walls["firecracker"].blockers.append(Blocker("no KVM", "switch it on"))
    spec = SandboxSpec(isolation=IsolationLevel.MICROVM)
    assert choose(spec, walls.__getitem__).backend.name == name


def test_the_table_has_firecracker_before_qemu():
    names = [name for name in backends.BUILTIN if name in ("firecracker", "qemu")]
    assert names == sorted(names)


def test_an_image_needs_a_wall_that_boots_one(walls):
    walls["vm"] = Fake("vm", IsolationLevel.MICROVM, images=True)
    walls["plain"] = Fake("plain", IsolationLevel.MICROVM)
    walls["oci"] = Fake("oci", IsolationLevel.NAMESPACE, images=True)
    with pytest.raises(Refused, match="backend linux takes no image, and slim was asked for"):
        choose(SandboxSpec(backend="linux", image="slim"), walls.__getitem__)
    with pytest.raises(Refused, match="backend plain takes no image"):
        choose(SandboxSpec(backend="plain", image="slim"), walls.__getitem__)
    for name in ("vm", "oci"):
        spec = SandboxSpec(backend=name, image="slim")
        assert choose(spec, walls.__getitem__).backend.name == name


def test_a_named_wall_is_the_only_one_tried(walls):
    walls["landlock"].blockers.append(Blocker("off", "boot with it"))
    spec = SandboxSpec(isolation=IsolationLevel.NONE, backend="landlock")
    with pytest.raises(Unavailable, match="backend landlock is not usable here: landlock: off"):
        choose(spec, walls.__getitem__)
    assert walls["linux"].probed == 0


def test_a_named_wall_that_is_too_weak_is_refused(walls):
    with pytest.raises(Refused, match="backend host gives isolation none, less than the namespace"):
        choose(SandboxSpec(backend="host"), walls.__getitem__)


def test_a_named_walls_own_refusal_is_told_as_it_is(walls):
    walls["linux"].refusal = InvalidInput("two mounts at /a")
    with pytest.raises(InvalidInput, match="two mounts"):
        choose(SandboxSpec(backend="linux"), walls.__getitem__)


def test_an_unknown_backend_is_named_with_the_known_ones():
    with pytest.raises(InvalidInput, match=r"unknown backend 'nope'.*host, landlock, linux"):
        backends.load("nope")


def test_the_table_tells_the_levels_that_the_backends_have():
    for name, known in backends.BUILTIN.items():
        backend = backends.load(name)
        assert (backend.name, backend.level) == (name, known.level)
        assert backends.images(name) == backend.images
        assert backends.abilities(name) == backend.abilities
        backend.close()
