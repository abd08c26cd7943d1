"""``agentd image build``: of a Dockerfile where a context is given, else a machine image."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentd.client.cli import image_oci, output, remote
from agentd.client.cli.parser import Actions, AddedUp, named
from agentd.model.errors import InvalidInput

if TYPE_CHECKING:
    from agentd.client.embedded import SandboxRunner
    from agentd.image.oci.building.layer import LayerWriter
    from agentd.image.oci.building.make import BuiltImage
    from agentd.image.oci.building.running import Output, RunEnd, RunStep
    from agentd.model.limits import Limits

_EXAMPLES = """\
  agentd image build -t mine .
  agentd image build -t mine -f Dockerfile.test --build-arg VERSION=3 --target test .
  agentd image build -t mine --net pypi,debian .   what each RUN may reach
  agentd image build -t mine --net host .          RUN has the host's network
  agentd image build
  agentd image build --name small --base busybox
  agentd image build --name mine --kernel ./vmlinux --initramfs ./initramfs.cpio
"""
_MORE = (
    "With a CONTEXT, a directory, an OCI image is built of its Dockerfile, each RUN in a sandbox "
    "of its own. Without one a machine image is made, which virtual machines boot."
)
_MACHINE = ("base", "kernel", "initramfs", "rootfs", "force")
_DOCKERFILE = (
    *("file", "build_arg", "target", "net", "no_cache"),
    *("insecure", "memory", "disk", "timeout"),
)
FAILED = 1


def add_build(actions: Actions, run: Callable[[argparse.Namespace], int]) -> None:
    build = actions.add(
        "build",
        "build an image of a Dockerfile; without a context, a machine image",
        _EXAMPLES,
        run,
        _MORE,
    )
    build.add_argument("context", metavar="CONTEXT", nargs="?", help="a directory, as .")
    name = build.add_mutually_exclusive_group()
    name.add_argument("-t", "--tag", type=named, metavar="NAME", help="its name, of a Dockerfile")
    name.add_argument("--name", type=named, metavar="NAME", help="its name, of either kind")
    own = build.add_argument_group("of a Dockerfile")
    own.add_argument(
        "-f", "--file", type=named, metavar="FILE", help="(default: CONTEXT/Dockerfile); - is stdin"
    )
    own.add_argument(
        "--build-arg",
        metavar="NAME=VALUE",
        action="append",
        help="of an ARG; without =VALUE that of this environment",
    )
    own.add_argument(
        "--target", type=named, metavar="STAGE", help="build this stage (default: the last)"
    )
    own.add_argument(
        "--insecure",
        action="store_true",
        help="FROM may pull from a registry without TLS, or with a certificate nobody vouches for",
    )
    own.add_argument(
        "--net",
        action=AddedUp,
        metavar="none|host|RULES",
        help="of each RUN (default: none); rules as pypi,deb.example.com",
    )
    own.add_argument("--no-cache", action="store_true", help="run every step anew")
    own.add_argument("--memory", metavar="SIZE", help="of each RUN, as 128M, 2G")
    own.add_argument("--disk", metavar="SIZE", help="what each RUN may write")
    own.add_argument("--timeout", metavar="TIME", help="of each RUN, as 10m (default: none)")
    machine = build.add_argument_group("of a machine image")
    machine.add_argument(
        "--base",
        type=named,
        metavar="debian|busybox",
        help="Debian's Python, bash and busybox (default), or less of Python and no bash",
    )
    machine.add_argument(
        "--kernel", type=named, metavar="PATH", help="a vmlinux or bzImage of your own"
    )
    machine.add_argument("--initramfs", type=named, metavar="PATH", help="an initramfs of your own")
    machine.add_argument(
        "--rootfs", type=named, metavar="PATH", help="an ext4 or erofs image of your own"
    )
    machine.add_argument("--force", action="store_true", help="build even if nothing has changed")


def is_of_dockerfile(options: argparse.Namespace) -> bool:
    """Tell the kind; ``name`` is the image's then. Raises InvalidInput for options of both."""
    unfit = _DOCKERFILE if options.context is None else _MACHINE
    for name in unfit:
        if getattr(options, name):
            option = "--" + name.replace("_", "-")
            if options.context is not None:
                raise InvalidInput(
                    f"{option} is for machine images",
                    remediation=f"leave out {option}, or the context",
                )
            raise InvalidInput(
                f"{option} is for a Dockerfile",
                remediation="give the directory to build, as: agentd image build -t NAME .",
            )
    if options.tag is not None and options.context is None:
        raise InvalidInput(
            "-t is for a Dockerfile, and no directory is given",
            remediation="give it, as: agentd image build -t NAME . (or say --name NAME, for a "
            "machine image)",
        )
    if options.tag is not None:
        options.name = options.tag
    if options.context is not None and options.name is None:
        raise InvalidInput("the image has no name", remediation="give it one: -t NAME")
    return options.context is not None


def build(options: argparse.Namespace) -> int:
    from agentd.image.oci.building.errors import BuildFailed

    try:
        built = _built(options)
    except BuildFailed as error:
        if options.json:
            remote.print_json(
                error.as_dict()
                | {"line": error.line, "instruction": error.instruction}
                | {"exit_code": error.exit_code}
            )
        output.say(remote.safe(error), "image")
        return FAILED
    for name in built.unused:
        print(f"note: no ARG asks for --build-arg {remote.safe(name)}", file=sys.stderr)
    image, steps = built.image, {"steps": built.steps, "cached": built.cached}
    told = image_oci.summary(image) | steps
    return remote.tell(options, told, f"{image.name} {image.digest}")


def _built(options: argparse.Namespace) -> "BuiltImage":
    from agentd.image.oci.building.make import Wanted, make
    from agentd.image.store import Store
    from agentd.model.limits import Limits
    from agentd.model.units import parse_duration, parse_size

    Store().check_free(options.name)
    wanted = Wanted(
        context=_context(options.context),
        name=options.name,
        file=options.file,
        args=_arguments(options.build_arg or []),
        target=options.target,
        net=options.net or "none",
        cache=not options.no_cache,
        insecure=options.insecure,
    )
    limits = Limits(
        memory=None if options.memory is None else parse_size(options.memory, "memory"),
        disk=None if options.disk is None else parse_size(options.disk, "disk"),
        timeout=None if options.timeout is None else parse_duration(options.timeout, "timeout"),
    )
    runner = _LateRunner(wanted.net, limits)
    try:
        return make(wanted, runner, _step, _output)
    finally:
        runner.close()


class _LateRunner:
    """What runs commands is imported once there is one: a cached build has none."""

    def __init__(self, net: str, limits: "Limits") -> None:
        self._net, self._limits = net, limits
        self._runner: SandboxRunner | None = None

    def run(self, step: "RunStep", layer: "LayerWriter", output: "Output") -> "RunEnd":
        if self._runner is None:
            from agentd.client import embedded

            self._runner = embedded.step_runner(self._net, self._limits)
        return self._runner.run(step, layer, output)

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()


def _context(text: str) -> str:
    if text == "-" or "://" in text or text.startswith("git@"):
        raise InvalidInput(
            f"{text[:200]} is no directory", remediation="fetch it first, and give its directory"
        )
    return text


def _arguments(words: list[str]) -> dict[str, str]:
    """Raises InvalidInput."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not name.isprintable():
            raise InvalidInput(f"--build-arg {word!r}", remediation="write NAME=VALUE")
        if name in found:
            raise InvalidInput(f"--build-arg {name} is given twice", remediation="drop one of them")
        told = value if equals else os.environ.get(name)
        try:
            (told or "").encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(
                f"--build-arg {name} is not UTF-8", remediation="give it as UTF-8, or in a file"
            ) from error
        found[name] = told
    return {name: value for name, value in found.items() if value is not None}


def _step(what: str, done: int, total: int) -> None:
    output.say(remote.safe(what), "image")


def _output(name: str, data: bytes) -> None:
    """Of a RUN, as it comes."""
    sys.stderr.flush()
    binary = getattr(sys.stderr, "buffer", None)
    if binary is None:
        sys.stderr.write(data.decode("utf-8", "replace"))
        return
    binary.write(data)
    binary.flush()
