"""Walls that lie in one thing each: the toy of examples/, with a lie.

``LIES`` says which cases of the suite name it. Each backend's entry point is its name here.
"""

import json
import os
import socket
import tarfile
import threading
from typing import Any

from agentd_wall_toy import LIMITS, ToyBackend, ToyPlan, ToyWall

from agentd.guest import wire
from agentd.model.enforcement import Control
from agentd.model.errors import Refused
from agentd.model.mount import MountMode
from agentd.model.spec import SandboxSpec

#: Backend -> the cases that fail behind it, and no other does.
LIES: dict[str, set[str]] = {
    "toy": set(),
    "claims_seccomp": {"test_seccomp_filters_each_command"},
    "claims_no_new_privs": {"test_no_new_privs_is_set"},
    "claims_agent_protected": {"test_the_agent_cannot_be_traced_or_read"},
    "claims_pid_namespace": {
        "test_a_namespace_is_a_new_one[pid_namespace]",
        "test_signals_to_the_caller_do_not_arrive",
    },
    "claims_virtual_machine": {
        "test_a_kernel_of_its_own_is_another",
        "test_files_of_the_caller_are_not_read",
        "test_files_of_the_caller_are_not_written",
        "test_signals_to_the_caller_do_not_arrive",
    },
    "claims_network": {
        "test_no_network_means_none",
        "test_abstract_sockets_of_the_host_are_out_of_reach",
        "test_the_hosts_network_is_reported_as_that",
    },
    "claims_landlock": {
        "test_files_of_the_caller_are_not_read",
        "test_files_of_the_caller_are_not_written",
        "test_signals_to_the_caller_do_not_arrive",
    },
    "claims_open_files": {"test_open_files_are_bounded"},
    "claims_pids": {"test_processes_are_bounded"},
    "promises_no_limit": {
        "test_a_limit_that_is_asked_for_is_held_or_refused[disk]",
        "test_disk_is_bounded",
    },
    "loses_output": {"test_output_up_to_its_limit_is_whole"},
    "loses_stderr": {
        "test_streams_are_kept_apart_byte_by_byte",
        "test_check_raises_with_the_result",
    },
    "changes_exit_code": {"test_an_exit_code_comes_back[3]"},
    "leaks_environment": {"test_nothing_of_the_hosts_environment_is_inside"},
    "leaves_files": {"test_close_leaves_no_file"},
    "writes_read_only": {"test_a_read_only_workspace"},
    "claims_pause": {"test_nothing_runs_while_it_is_paused", "test_a_paused_sandbox_ends"},
    "pauses_nothing": {"test_nothing_runs_while_it_is_paused"},
    "keeps_snapshots": set(),  # the truth that the next one bends
    "forgets_snapshots": {"test_a_snapshot_keeps_files", "test_forks_are_sandboxes_of_their_own"},
    "claims_of_copies": set(),  # the suite has to be asked of copies
}


class Liar(ToyBackend):
    """``made`` is called with each wall, and each frame goes through ``agent`` or ``host``."""

    name = ""

    def launch(self, plan: ToyPlan) -> ToyWall:
        wall = self.wall(plan)
        self.made(wall, plan)
        return wall

    def wall(self, plan: ToyPlan) -> ToyWall:
        return ToyWall()

    def made(self, wall: ToyWall, plan: ToyPlan) -> None: ...


def claiming(control: str) -> type[Liar]:
    """A backend that reports a control as enforced, and has none."""

    class Claiming(Liar):
        name = f"claims_{control}"

        def made(self, wall: ToyWall, plan: ToyPlan) -> None:
            asked = "none" if control == "network" else "default"
            wall.enforcement[control] = Control(asked, True, "upon my word")

    return Claiming


class Unlimited(Liar):
    """Takes a limit, and sets none."""

    limit, enforced = "", True

    def plan(self, spec: SandboxSpec) -> ToyPlan:
        asked = {name for name in LIMITS if getattr(spec.limits, name) is not None}
        return ToyPlan(spec) if asked == {self.limit} else super().plan(spec)

    def made(self, wall: ToyWall, plan: ToyPlan) -> None:
        value = getattr(plan.spec.limits, self.limit)
        if value is not None:
            wall.enforcement[self.limit] = Control(str(value), self.enforced, "upon my word")


class claims_open_files(Unlimited):
    name, limit = "claims_open_files", "open_files"


class claims_pids(Unlimited):
    name, limit = "claims_pids", "pids"


class promises_no_limit(Unlimited):
    """Takes a limit, and says that it does not hold it: that is to be refused."""

    name, limit, enforced = "promises_no_limit", "disk", False


claims_seccomp = claiming("seccomp")
claims_no_new_privs = claiming("no_new_privs")
claims_agent_protected = claiming("agent_protected")
claims_pid_namespace = claiming("pid_namespace")
claims_virtual_machine = claiming("virtual_machine")
claims_network = claiming("network")
claims_landlock = claiming("landlock")


# --- what goes between the agent and the host ---


class Bent(ToyWall):
    """Each frame is one that ``bend`` makes of it; None: it is lost."""

    bend: Any

    def open_stream(self) -> socket.socket:
        agent = super().open_stream()
        ours, theirs = socket.socketpair()
        ends = [(theirs, agent, wire.FROM_HOST), (agent, theirs, wire.FROM_AGENT)]
        for end in ends:
            threading.Thread(target=self._carry, args=end, daemon=True).start()
        return ours

    def _carry(self, source: socket.socket, sink: socket.socket, accept: frozenset[int]) -> None:
        decoder, hello = wire.FrameDecoder(accept), b""
        try:
            while data := source.recv(1 << 16):
                if not hello.endswith(b"\n"):  # the first line is none
                    line, newline, data = data.partition(b"\n")
                    hello += line + newline
                    sink.sendall(line + newline)
                for kind, channel, payload in decoder.feed(data):
                    bent = self.bend(kind, payload)
                    if bent is not None:
                        sink.sendall(wire.encode(kind, channel, bent))
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def bending(bend: Any, called: str) -> type[Liar]:
    class Bending(Liar):
        name = called

        def wall(self, plan: ToyPlan) -> ToyWall:
            wall = Bent()
            wall.bend = bend
            return wall

    return Bending


def _lose_output(kind: int, payload: bytes) -> bytes | None:
    """The last byte of what is long."""
    return payload[:-1] if kind == wire.STDOUT and len(payload) > 1000 else payload


def _lose_stderr(kind: int, payload: bytes) -> bytes | None:
    return None if kind == wire.STDERR else payload


def _change_exit_code(kind: int, payload: bytes) -> bytes | None:
    if kind == wire.EVENT:
        event = json.loads(payload)
        if event.get("code") == 3:
            return json.dumps(event | {"code": 0}).encode()
    return payload


loses_output = bending(_lose_output, "loses_output")
loses_stderr = bending(_lose_stderr, "loses_stderr")
changes_exit_code = bending(_change_exit_code, "changes_exit_code")


# --- what is outside ---


class leaks_environment(Liar):
    name = "leaks_environment"

    def wall(self, plan: ToyPlan) -> ToyWall:
        return ToyWall(dict(os.environ))


class Untidy(ToyWall):
    def kill(self) -> None:
        super().kill()
        os.makedirs(self.workspace, exist_ok=True)


class leaves_files(Liar):
    name = "leaves_files"

    def wall(self, plan: ToyPlan) -> ToyWall:
        return Untidy()


class InPlace(ToyWall):
    """Its workspace is the host's folder, however it was to be mounted."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._own, self.workspace = self.workspace, source

    def kill(self) -> None:
        self.workspace = self._own
        super().kill()


class writes_read_only(Liar):
    name = "writes_read_only"

    def plan(self, spec: SandboxSpec) -> ToyPlan:
        if [mount.target for mount in spec.mounts] != ["/workspace"]:
            return super().plan(spec)
        if spec.mounts[0].mode is MountMode.COW:
            raise Refused("no copy on write", remediation="mount it as rw")
        return ToyPlan(spec)

    def wall(self, plan: ToyPlan) -> ToyWall:
        return InPlace(plan.spec.mounts[0].source) if plan.spec.mounts else ToyWall()


# --- what some can ---


class claims_pause(Liar):
    name, abilities = "claims_pause", frozenset({"pause"})


class Restless(ToyWall):
    def pause(self) -> None: ...
    def resume(self) -> None: ...


class pauses_nothing(Liar):
    name, abilities = "pauses_nothing", frozenset({"pause"})

    def wall(self, plan: ToyPlan) -> ToyWall:
        return Restless()


class Keeping(ToyWall):
    fidelity = "files"

    def snapshot(self, folder: str) -> None:
        with tarfile.open(f"{folder}/workspace.tar", "w") as tar:
            tar.add(self.workspace, ".")


class keeps_snapshots(Liar):
    name, abilities = "keeps_snapshots", frozenset({"snapshot", "fork"})

    def wall(self, plan: ToyPlan) -> ToyWall:
        return Keeping()

    def restore(self, plan: ToyPlan, folder: str) -> ToyWall:
        wall = self.wall(plan)
        with tarfile.open(f"{folder}/workspace.tar") as tar:
            # Python 3.11.2, of Debian 12, has no filters.
            filters: Any = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
            tar.extractall(wall.workspace, **filters)  # noqa: S202  our own
        return wall


class forgets_snapshots(keeps_snapshots):
    name = "forgets_snapshots"

    def restore(self, plan: ToyPlan, folder: str) -> ToyWall:
        return self.wall(plan)


class claims_of_copies(keeps_snapshots):
    name = "claims_of_copies"

    def restore(self, plan: ToyPlan, folder: str) -> ToyWall:
        wall = super().restore(plan, folder)
        wall.enforcement["seccomp"] = Control("default", True, "upon my word")
        return wall
