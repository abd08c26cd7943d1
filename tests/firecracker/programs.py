"""Runnable fakes of ``firecracker`` and ``jailer``: the same arguments, files, exits and sockets.

The fake jailer lays out the jail, becomes the machine's user in a pid namespace of its own and
writes the pid file, as the real one does. It does not change the root, for its Firecracker is a
Python program that has to find its library; and there is no seccomp filter.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tests.firecracker.machine import BAD_CALL, Machine, log
from tests.firecracker.schema import Api
from tests.firecracker.server import Server

from agentd.guest.agent import preload
from agentd.linux import abi
from agentd.linux.kernel import KERNEL

ROOT = Path(__file__).resolve().parent.parent.parent
_ARGUMENT_PARSING = 153
_HANDLED = {
    signal.SIGSYS: BAD_CALL, signal.SIGBUS: 149, signal.SIGSEGV: 150, signal.SIGXFSZ: 151,
    signal.SIGXCPU: 154, signal.SIGHUP: 156, signal.SIGILL: 157,
}  # fmt: skip


def make(folder: Path, version: str = "1.16.1", **settings: Any) -> dict[str, str]:
    """Executable ``firecracker`` and ``jailer``; their paths.

    Settings: the machine's, ``jailer_exit`` (a status), ``jailer_version``, ``start_exit``
    (Firecracker's, at once), ``chatter`` and ``lines`` (what it prints and how often).
    """
    paths = {}
    for name in ("firecracker", "jailer"):
        path = folder / name
        said = settings.get("jailer_version", version) if name == "jailer" else version
        path.write_text(
            f"#!{sys.executable} -B\n"
            "import sys\n"
            f"if sys.argv[1:] == ['--version']:\n"
            f"    sys.exit(print({f'{name.capitalize()} v{said}'!r}))\n"
            f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'src')!r}]\n"
            f"from tests.firecracker import programs\n"
            f"programs.{name}({json.dumps(said)}, {settings!r})\n"
        )
        path.chmod(0o755)
        paths[name] = str(path)
    return paths


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Arguments parsing error: {message}", flush=True)
        os._exit(_ARGUMENT_PARSING)


def firecracker(version: str, settings: dict[str, Any], words: list[str] | None = None) -> None:
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    parser.add_argument("--enable-pci", action="store_true")
    options = parser.parse_args(words)
    if "start_exit" in settings:
        print("asked to by the test", flush=True)
        os._exit(settings["start_exit"])
    machine = Machine(Api(version), options.id, settings)
    for number, status in _HANDLED.items():
        signal.signal(number, partial(_handle, status))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(options.api_sock)
    except OSError as error:
        print(f"RunWithApiError error: Failed to open the API socket at: {options.api_sock}. "
              f"Check that it is not already used: {error}", flush=True)  # fmt: skip
        os._exit(1)
    listener.listen(128)
    for _ in range(settings.get("lines", 1)):
        print(settings.get("chatter", f"Running Firecracker v{version}"), flush=True)
    Server(listener, machine).run()


def _handle(status: int, number: int, _: object) -> NoReturn:
    """As signal_handler.rs: the reason, and an exit in place of the signal."""
    log("ERROR", f"Shutting down VM after intercepting signal {number}, code 1.")
    if status == BAD_CALL:
        log("ERROR", "Shutting down VM after intercepting a bad syscall (232).")
    os._exit(status)


def jailer(version: str, settings: dict[str, Any]) -> None:
    parser = _Parser(allow_abbrev=False, add_help=False)
    parser.add_argument("--id", required=True)
    parser.add_argument("--exec-file", required=True)
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--gid", type=int, required=True)
    parser.add_argument("--chroot-base-dir", default="/srv/jailer")
    parser.add_argument("--cgroup-version", choices=("1", "2"), default="1")
    parser.add_argument("--parent-cgroup")
    parser.add_argument("--resource-limit", action="append", default=[])
    parser.add_argument("--new-pid-ns", action="store_true")
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if "jailer_exit" in settings:
        print("the jailer was asked to fail by the test", flush=True)
        os._exit(settings["jailer_exit"])
    _check(options)
    # All that the agent imports late, while we can still read it.
    preload()
    root = _lay_out(options)
    for limit in options.resource_limit:
        name, _, value = limit.partition("=")
        kind = {"fsize": resource.RLIMIT_FSIZE, "no-file": resource.RLIMIT_NOFILE}[name]
        resource.setrlimit(kind, (int(value), int(value)))
    _enter_group(options)
    os.chdir(root)
    os.setsid() if os.getpid() != os.getsid(0) else None
    if not options.new_pid_ns:
        _become(options, version, settings)
    KERNEL.unshare(abi.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        _become(options, version, settings)
    with open(f"{root}/firecracker.pid", "x") as file:
        file.write(str(pid))


def _check(options: argparse.Namespace) -> None:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", options.id):
        sys.exit(f"Invalid instance ID: {options.id}")
    if not os.path.isfile(options.exec_file):
        sys.exit(f"{options.exec_file} is not a file")
    if options.parent_cgroup and (".." in options.parent_cgroup or options.parent_cgroup[0] == "/"):
        sys.exit("The parent cgroup path is invalid")
    if options.rest[:1] != ["--"]:
        sys.exit("arguments of Firecracker come after --")


def _lay_out(options: argparse.Namespace) -> str:
    root = f"{options.chroot_base_dir}/{os.path.basename(options.exec_file)}/{options.id}/root"
    os.makedirs(root, exist_ok=True)
    shutil.copy(options.exec_file, f"{root}/firecracker")
    for folder in (root, f"{root}/dev", f"{root}/dev/net", f"{root}/run"):
        os.makedirs(folder, exist_ok=True)
        os.chmod(folder, 0o700)
        os.chown(folder, options.uid, options.gid)
    os.mknod(f"{root}/dev/kvm", stat.S_IFCHR | 0o600, os.makedev(10, 232))
    os.chown(f"{root}/dev/kvm", options.uid, options.gid)
    return root


def _enter_group(options: argparse.Namespace) -> None:
    """With version 2 and no --cgroup it goes into the parent, if that is there."""
    path = f"/sys/fs/cgroup/{options.parent_cgroup}/cgroup.procs"
    if options.cgroup_version == "2" and options.parent_cgroup and os.path.exists(path):
        with open(path, "w") as file:
            file.write(str(os.getpid()))


def _become(options: argparse.Namespace, version: str, settings: dict[str, Any]) -> NoReturn:
    try:
        os.setgroups([])
        os.setresgid(options.gid, options.gid, options.gid)
        os.setresuid(options.uid, options.uid, options.uid)
        os.environ.clear()
        firecracker(version, settings, ["--id", options.id, *options.rest[1:]])
    finally:
        os._exit(2)
