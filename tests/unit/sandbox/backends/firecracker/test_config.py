"""Every request that we ever make, judged by the API file of the release it is made of."""

from collections.abc import Iterable

import pytest
from tests.firecracker.schema import Api, load

from agentd.model.errors import Refused
from agentd.model.limits import MIB, Limits
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends.firecracker import config
from agentd.sandbox.backends.firecracker.config import ApiRequest
from agentd.sandbox.backends.firecracker.plan import make_plan
from agentd.sandbox.backends.firecracker.version import Quirks, parse, quirks

VERSIONS = ("1.14.4", "1.15.1", "1.16.1", "1.17.0-dev")
PLAN = make_plan(SandboxSpec(limits=Limits(memory=512 * MIB, cpus=2.5)))


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def api(version: str) -> Api:
    return load(version)


@pytest.fixture
def found(version: str) -> Quirks:
    return quirks(parse(version))


def judge(api: Api, requests: Iterable[ApiRequest]) -> list[str]:
    paths = []
    for method, path, body in requests:
        api.check(api.find(method, path), body)
        paths.append(path)
    return paths


def test_a_boot_is_within_the_schema_and_ends_with_the_start(api: Api, found: Quirks) -> None:
    paths = judge(api, config.boot(PLAN, found))
    assert paths[0] == "/logger"
    assert paths[-1] == "/actions"
    assert len(set(paths)) == len(paths)
    assert ("/serial" in paths) == found.serial_limiter


def test_a_restore_is_within_the_schema(api: Api, found: Quirks) -> None:
    paths = judge(api, config.restore(found))
    assert paths == ["/logger", "/metrics", "/snapshot/load"]


def test_states_and_snapshots_are_within_the_schema(api: Api) -> None:
    judge(api, [config.state("Paused"), config.snapshot(), config.state("Resumed")])


def test_the_machine_is_the_plans(found: Quirks) -> None:
    (body,) = [body for _, path, body in config.boot(PLAN, found) if path == "/machine-config"]
    assert body is not None
    assert (body["vcpu_count"], body["mem_size_mib"]) == (3, 672)


def test_a_release_whose_restores_are_broken_is_asked_for_none() -> None:
    with pytest.raises(Refused, match="5958"):
        list(config.restore(quirks(parse("1.16.0"))))


def test_a_limit_would_have_been_refused_by_an_older_release() -> None:
    """The gate is needed: this is what the schema of the release says to the field."""
    from tests.firecracker.schema import Refused as Fault

    new = quirks(parse("1.16.1"))
    api = load("1.15.1")
    with pytest.raises(Fault, match="rate_limiter"):
        judge(api, config.boot(PLAN, new))


def test_the_kernel_is_told_how_to_end_and_where_to_listen() -> None:
    kernel, _, init = config.ARGUMENTS.partition(" -- ")
    assert "reboot=k" in kernel  # a reboot ends Firecracker on x86, a power-off does not
    assert "panic=1" in kernel
    assert "console=" not in kernel
    assert "nomodule" not in kernel  # Debian's vsock is a module
    assert init == "--listen vsock:5000"
