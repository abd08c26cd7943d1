"""Virtual machines that boot otherwise: a device that comes late, and an agent that is not ours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import boot
from tests.vm.boot import PORT, eventually
from tests.vm.debian import Unavailable
from tests.vm.lines import Lines

from agentd.image.model import Image
from agentd.model.errors import Refused
from agentd.model.result import CauseCode
from agentd.model.spec import ExecRequest, Pty
from agentd.transport.guest import Guest

HERE = Path(boot.__file__).parent
pytestmark = pytest.mark.timeout(1800)  # what is emulated takes its time beside others


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    try:
        yield boot.image()
    except Unavailable as missing:
        pytest.skip(str(missing))


def test_a_vsock_that_is_plugged_in_late_is_listened_on(image: Image) -> None:
    # Words that init does not know do not end it either.
    with boot.booted(image, vsock=False, ports=(), listen=("--nonsense",)) as machine:
        assert eventually(lambda: "going on with vsock:5000" in machine.log())
        assert eventually(lambda: "listening on vsock:5000" in machine.log())
        backend = {"type": "socket", "data": {"addr": {"type": "unix", "data": {
            "path": str(machine.folder / "vhost")}}, "server": False}}  # fmt: skip
        answers = machine.qmp(
            {"execute": "chardev-add", "arguments": {"id": "vs", "backend": backend}},
            {"execute": "device_add", "arguments": {
                "driver": "vhost-user-vsock-pci", "chardev": "vs", "id": "late"}},
        )  # fmt: skip
        assert ["return" in answer for answer in answers] == [True] * 3, answers
        with Lines(machine.open()) as client:
            assert client.sh("echo over vsock") == "over vsock\n"


def test_a_place_that_cannot_be_had_is_waited_for_beside_the_others(image: Image) -> None:
    listen = ("virtio:late", f"vsock:{PORT}")
    with boot.booted(image, listen=listen, ports=("agentd",)) as machine:
        with Lines(machine.open()) as client:
            assert client.sh("echo on") == "on\n"
        assert eventually(lambda: "no virtio port is named 'late'" in machine.log())
        chardev = {"type": "socket", "data": {"addr": {"type": "unix", "data": {
            "path": str(machine.folder / "port1")}}, "server": True, "wait": False}}  # fmt: skip
        machine.qmp(
            {"execute": "chardev-add", "arguments": {"id": "late", "backend": chardev}},
            {"execute": "device_add", "arguments": {
                "driver": "virtserialport", "chardev": "late", "name": "late", "id": "late"}},
        )  # fmt: skip
        with Lines(machine.port(1)) as client:
            assert client.sh("echo late") == "late\n"


def test_an_agent_that_speaks_only_v1_works_unchanged(image: Image) -> None:
    overlay = boot.instead_of_the_agent(HERE / "v1_only.py", str(PORT))
    with boot.booted(image, overlay=overlay, words="rdinit=/other", ports=()) as machine:
        guest = Guest(machine.open, passes_descriptors=False, handshake_timeout=120)
        try:
            end, out, err, _ = guest.run(
                ExecRequest(("sh", "-c", "echo out; echo err >&2; exit 7"))
            )
            assert (end.exit_code, end.cause.code, out, err) == (
                7, CauseCode.EXITED, b"out\n", b"err\n"
            )  # fmt: skip
            assert guest.run(ExecRequest(("cat",)), stdin=b"x" * 300_000)[1] == b"x" * 300_000
            missing = guest.run(ExecRequest(("no-such-program",)))[0]
            assert (missing.exit_code, missing.cause.code) == (127, CauseCode.SPAWN_FAILED)
            env = ExecRequest(("sh", "-c", "pwd; echo $A"), cwd="/tmp", env={"A": "b"})
            assert guest.run(env)[1] == b"/tmp\nb\n"
            assert guest.run(ExecRequest(("kill", "-9", "1")))[0].exit_code is not None
            for impossible in (ExecRequest(("sh",), pty=Pty()), ExecRequest(("sh",), stdin=True)):
                with pytest.raises(Refused) as caught:
                    guest.start(impossible)
                assert caught.value.remediation
        finally:
            guest.close()
