"""What Firecracker keeps: configuration, phase, and the files and sockets that come of it.

There is no virtual CPU behind it: the guest is an agent in a process of its own, and a snapshot's
memory file is of the right size and empty, unless a test has the guest use its memory.
"""

import json
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any

from tests.firecracker.guest import Guest, Hybrid
from tests.firecracker.schema import Api, Operation, Refused

NOT_STARTED, RUNNING, PAUSED = "Not started", "Running", "Paused"
MIB = 1 << 20
BAD_CALL = 148
_BEFORE_LOAD = {"/logger", "/metrics"}


class Die(Exception):
    """The process ends with this status once the request was answered, if it ever is."""

    def __init__(self, status: int, fault: str = "") -> None:
        super().__init__(fault)
        self.status = status


class Machine:
    """Settings: ``exits`` maps an API path to the status that a request of it ends the process
    with, ``hang`` is one that is never answered, ``original``: the image's agent speaks v1 alone,
    ``older``: it is of a release that knew no authority of a network's,
    ``full``: the guest uses all of its memory, ``noise``: lines that it makes us log.
    """

    def __init__(self, api: Api, id_: str, settings: dict[str, Any]) -> None:
        self.api = api
        self.id = id_
        self._settings = settings
        self._memory: mmap.mmap | None = None
        self.state = NOT_STARTED
        self.config: dict[str, Any] = {
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "smt": False},
        }
        self.hang = settings.get("hang", "")
        self._exits = settings.get("exits", {})
        self._seen: set[str] = set()
        self._listener: socket.socket | None = None
        self.hybrid: Hybrid | None = None
        self.guest: Guest | None = None

    def get(self, path: str) -> dict[str, Any]:
        if path == "/":
            version = self.api.version
            return {
                "id": self.id,
                "state": self.state,
                "vmm_version": version,
                "app_name": "Firecracker",
            }
        if path == "/version":
            return {"firecracker_version": self.api.version}
        if path == "/vm/config":
            return self.config
        if path == "/machine-config":
            return dict(self.config["machine-config"])
        raise Refused(f"{path} is not part of the fake.")

    def perform(self, method: str, path: str, operation: Operation, body: Any) -> None:
        """Raises Refused and Die."""
        if path in self._exits:
            raise Die(self._exits[path], _last_words(self._exits[path]))
        self._check_phase(path, operation)
        handler = self._handlers().get((method, operation.path))
        if handler is not None:
            handler(body)
        else:
            self.config[path.strip("/")] = body
        self._seen.add(operation.path)

    def _handlers(self) -> dict[tuple[str, str], Callable[[Any], None]]:
        return {
            ("PUT", "/actions"): self._act,
            ("PUT", "/boot-source"): self._boot_source,
            ("PUT", "/machine-config"): self._machine,
            ("PATCH", "/machine-config"): self._machine,
            ("PUT", "/logger"): lambda body: self._once("/logger", body),
            ("PUT", "/metrics"): self._metrics,
            ("PUT", "/vsock"): self._vsock,
            ("PATCH", "/vm"): self._set_state,
            ("PUT", "/snapshot/create"): self._save,
            ("PUT", "/snapshot/load"): self._load,
        }

    def _check_phase(self, path: str, operation: Operation) -> None:
        started = self.state != NOT_STARTED
        if operation.phase == "pre" and started:
            raise Refused("The requested operation is not supported after starting the microVM.")
        if operation.phase == "post" and not started:
            raise Refused("The requested operation is not supported before starting the microVM.")
        if operation.path == "/snapshot/load" and self._seen - _BEFORE_LOAD:
            raise Refused(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring "
                "boot-specific resources."
            )

    def _act(self, body: dict[str, str]) -> None:
        action = body["action_type"]
        if action != "InstanceStart":
            if self.state == NOT_STARTED:
                raise Refused(
                    "The requested operation is not supported before starting the microVM."
                )
            return
        if self.state != NOT_STARTED:
            raise Refused("The requested operation is not supported after starting the microVM.")
        if "boot-source" not in self.config:
            raise Refused("Cannot start microvm without kernel configuration.")
        self._start()

    def _start(self) -> None:
        self.state = RUNNING
        self._log_noise()
        if self._settings.get("full"):
            self._memory = mmap.mmap(-1, self._size)
            for place in range(0, self._size, mmap.PAGESIZE):
                self._memory[place] = 1
        if self._listener is not None:
            agent = {name: self._settings.get(name, False) for name in ("original", "older")}
            self.guest = Guest(**agent)
            self.hybrid = Hybrid(self._listener, self.guest.path)

    @property
    def _size(self) -> int:
        return int(self.config["machine-config"]["mem_size_mib"]) * MIB

    def _log_noise(self) -> None:
        """A guest reads a real-time clock that is not there (vcpu.rs, a warning each time)."""
        level = self.config.get("logger", {}).get("level", "Info")
        if level in ("Warning", "Warn", "Info", "Debug", "Trace"):
            for _ in range(self._settings.get("noise", 18)):
                log("WARN", "vcpu: IO read @ 0x71:0x1 failed: MissingAddressRange")

    def _boot_source(self, body: dict[str, str]) -> None:
        for field in ("kernel_image_path", "initrd_path"):
            if field in body:
                _open(body[field], field)
        self.config["boot-source"] = body

    def _machine(self, body: dict[str, Any]) -> None:
        self.config["machine-config"] |= body

    def _metrics(self, body: dict[str, str]) -> None:
        self._once("/metrics", body)
        os.close(os.open(body["metrics_path"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def _once(self, path: str, body: object) -> None:
        if path in self._seen:
            raise Refused(f"{path} cannot be initialized twice.")
        self.config[path.strip("/")] = body

    def _vsock(self, body: dict[str, Any]) -> None:
        self._listener = _listen(body["uds_path"])
        self.config["vsock"] = body

    def _set_state(self, body: dict[str, str]) -> None:
        self.state = PAUSED if body["state"] == "Paused" else RUNNING
        if self.hybrid is not None:
            self.hybrid.paused(self.state == PAUSED)

    def _save(self, body: dict[str, Any]) -> None:
        if self.state != PAUSED:
            raise Refused("Create snapshot error: the microVM is not paused.")
        with open(body["mem_file_path"], "wb") as file:
            file.write(self._memory or b"memory of " + self.id.encode())
            file.truncate(self._size)
        saved = {"version": self.api.version, "config": self.config}
        with open(body["snapshot_path"], "w") as file:
            json.dump(saved, file)
        if self.hybrid is not None:
            self.hybrid.reset()

    def _load(self, body: dict[str, Any]) -> None:
        if ("mem_backend" in body) == ("mem_file_path" in body):
            raise Refused(
                "Exactly one of mem_backend and mem_file_path must be given in a load request."
            )
        try:
            memory = body.get("mem_file_path") or body["mem_backend"]["backend_path"]
            _open(memory, "memory file")
            with open(body["snapshot_path"]) as file:
                saved = json.load(file)
            if saved["version"] != self.api.version:
                raise Refused(f"snapshot version {saved['version']} is not {self.api.version}")
            vsock = body.get("vsock_override") or saved["config"].get("vsock")
            if vsock:
                self._listener = _listen(vsock["uds_path"])
        except (OSError, ValueError, Refused) as error:
            raise Die(1, f"Load snapshot error: {error}") from error
        self.config = saved["config"]
        self._start()
        if not body.get("resume_vm", False):
            self._set_state({"state": "Paused"})


def log(level: str, text: str) -> None:
    os.write(1, f"2026-11-26T12:00:00 [anonymous-instance:main:{level}] {text}\n".encode())


def _last_words(status: int) -> str:
    """What Firecracker logs where it ends by itself (signal_handler.rs), for the test's wish."""
    if status == BAD_CALL:
        return "Shutting down VM after intercepting a bad syscall (232)."
    return "asked to by the test"


def _open(path: str, what: str) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise Refused(f"The {what} cannot be opened: {error.strerror}.") from error


def _listen(path: str) -> socket.socket:
    """Bound when it is configured and left behind when the process ends, as the real one does."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise Refused(
            f"Cannot create backend for vsock device: UnixBind({error.strerror})."
        ) from error
    return listener
