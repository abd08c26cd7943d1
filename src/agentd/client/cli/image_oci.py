"""What ``agentd image`` does with OCI images; machine images are ``image``'s own."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agentd.client.cli import output, remote
from agentd.client.cli.parser import Actions, AddedUp, named
from agentd.model.errors import Conflict, SandboxError

if TYPE_CHECKING:
    from agentd.image.model import Progress
    from agentd.image.oci.store import OciStore, Removed
    from agentd.image.oci.values import OciImage

_PULL = """\
  agentd image pull docker://python:3.13-slim
  agentd image pull docker://localhost:5000/mine --insecure
  agentd image pull docker://registry.internal/mine --net auth.internal:8443
  agentd image pull oci:./layout:tag
  agentd image pull docker-archive:image.tar --name mine
  agentd image pull dir:./rootfs
"""


_PUSH = """\
  agentd image push mine oci:./layout:tag
  agentd image push mine oci-archive:./mine.tar
  agentd image push mine docker://registry.example/me/mine:1.0
"""

_NET_HELP = (
    "whom the registry may lead to besides the public, as auth.internal:8443; host: whatever this "
    "machine reaches"
)


def add_pull(actions: Actions, run: Callable[[argparse.Namespace], int]) -> None:
    pull = actions.add("pull", "fetch an OCI image, check it, and unpack it", _PULL, run)
    pull.add_argument(
        "source",
        metavar="SOURCE",
        help="docker://NAME:TAG, oci:PATH[:TAG], oci-archive:PATH, docker-archive:PATH[:NAME:TAG] "
        "or dir:PATH, a root file system",
    )
    pull.add_argument("--name", type=named, metavar="NAME", help="what it is called here")
    pull.add_argument(
        "--insecure",
        action="store_true",
        help="from a registry without TLS, or with a certificate that nobody vouches for",
    )
    pull.add_argument("--net", action=AddedUp, metavar="host|RULES", help=_NET_HELP)
    pull.add_argument(
        "--timeout", metavar="TIME", default="1h", help="how long each step may take (default: 1h)"
    )
    pull.add_argument(
        "--max-size", metavar="SIZE", default="32G", help="of its layers, unpacked (default: 32G)"
    )
    pull.add_argument(
        "--max-files",
        metavar="N",
        default="2000000",
        help="of its layers, unpacked (default: 2000000)",
    )


def add_push(actions: Actions) -> None:
    about = "write an OCI image into a layout, an archive or a registry"
    push = actions.add("push", about, _PUSH, push_image)
    push.add_argument("name", metavar="NAME", help="of an image here")
    push.add_argument(
        "target",
        metavar="TARGET",
        help="oci:PATH[:TAG], oci-archive:PATH[:TAG] or docker://HOST/NAME:TAG",
    )
    push.add_argument(
        "--insecure",
        action="store_true",
        help="to a registry without TLS, or with a certificate that nobody vouches for",
    )
    push.add_argument("--net", action=AddedUp, metavar="host|RULES", help=_NET_HELP)
    push.add_argument(
        "--timeout", metavar="TIME", default="1h", help="how long it may take (default: 1h)"
    )


def add_commit(actions: Actions) -> None:
    commit = actions.add(
        "commit",
        "name an image of what a daemon's sandbox is now",
        "  agentd image commit sbx-abcdefghijkl mine:1\n",
        commit_sandbox,
        "The image that it started of, and its changes as one more layer.",
    )
    commit.add_argument("sandbox", metavar="SANDBOX", help="its id or name")
    commit.add_argument("name", metavar="NAME", help="an image of that name is replaced")
    commit.add_argument("--url", metavar="URL", help=remote.URL_HELP)


def add_verify(actions: Actions) -> None:
    verify = actions.add(
        "verify",
        "check all images, or those that are named",
        "  agentd image verify\n  agentd image verify mine --json\n",
        verify_images,
        "Hash every blob and look at every unpacked file. Exit code 1: one of them is damaged.",
    )
    verify.add_argument("names", metavar="NAME", nargs="*", help="of images here (default: all)")


def pull(options: argparse.Namespace, progress: "Progress") -> "OciImage":
    from agentd.image.oci.bounds import ImageBounds
    from agentd.image.oci.pull import pull as pulled
    from agentd.image.oci.source import parse
    from agentd.image.store import Store
    from agentd.model.units import parse_count, parse_duration, parse_size

    seconds = parse_duration(options.timeout)
    bounds = ImageBounds(
        unpacked=parse_size(options.max_size, "--max-size"),
        files=parse_count(options.max_files, "--max-files"),
    )
    name = options.name or parse(options.source).name()
    Store().check_free(name)
    return pulled(
        *(options.source, name, progress),
        seconds=seconds,
        insecure=options.insecure,
        net=options.net,
        bounds=bounds,
    )


def push_image(options: argparse.Namespace) -> int:
    from agentd.image.oci.push import push
    from agentd.model.units import parse_duration

    def say(what: str, done: int, total: int) -> None:
        output.say(remote.safe(what), "image")

    seconds = parse_duration(options.timeout)
    image = push(
        *(options.name, options.target, say),
        seconds=seconds,
        insecure=options.insecure,
        net=options.net,
    )
    told = {"name": image.name, "digest": image.digest, "pushed": options.target}
    return remote.tell(options, told, f"{image.name} {image.digest}")


def commit_sandbox(options: argparse.Namespace) -> int:
    with remote.service(options) as service:
        made = service.sandboxes.commit(options.sandbox, options.name)
    return remote.tell(options, made, f"{made.name} {made.digest}")


def store() -> "OciStore":
    from agentd.image.oci.store import OciStore

    return OciStore()


def check_free(name: str) -> None:
    """Check a name. Raises Conflict where an OCI image is called that."""
    if is_known(name):
        raise Conflict(
            f"{name} is an OCI image already",
            remediation=f"give another --name, or remove that one: agentd image rm {name}",
        )


def found(name: str) -> "OciImage | None":
    """Find an image; None where no OCI image is called that. Raises Corrupt."""
    from agentd.image.model import NotFound

    try:
        return store().get(name)
    except NotFound:
        return None


def is_known(name: str) -> bool:
    """Return whether an OCI image is called that, in whatever state it is."""
    from agentd.image.model import NotFound

    try:
        store().find(name)
    except NotFound:
        return False
    return True


def tell_kept(removed: "Removed") -> None:
    """Tell a person what stays for now."""
    if removed.in_use:
        output.say(f"{removed.in_use} in use, which a later prune removes", "image")


def rows() -> list[dict[str, Any]]:
    """Return one for each image, whatever its state."""
    images = store()
    found = (_row(images, name) for name in images.names())
    return [row for row in found if row is not None]


def summary(image: "OciImage") -> dict[str, Any]:
    return {
        "name": image.name,
        "kind": "oci",
        "digest": image.digest,
        "source": image.source,
        "platform": image.config.platform,
        "layers": len(image.manifest.layers),
        "size": image.size,
        "pulled": image.pulled,
        "state": "ready",
    }


def _row(images: "OciStore", name: str) -> dict[str, Any] | None:
    """None where it was removed just now."""
    from agentd.image.model import NotFound

    try:
        image, lease = images.leased(lambda: images.get(name))
        lease.close()
    except NotFound:
        return None
    except SandboxError as error:
        gone = {"name": name, "kind": "oci", "digest": "", "source": "", "platform": ""}
        return gone | {"layers": 0, "size": 0, "pulled": 0.0, "state": str(error)}
    return summary(image)


def inspect(image: "OciImage", options: argparse.Namespace) -> None:
    if options.verify and (wrong := store().verify([image.name])[image.name]):
        from agentd.image.model import Corrupt

        raise Corrupt(wrong)
    run = image.config.run
    root = store().roots.root(image.chain)
    disk = _disk(image)
    if options.json:
        layers = [{"digest": b.digest, "size": b.size} for b in image.manifest.layers]
        remote.print_json(
            summary(image)
            | {"chain": image.chain, "root": root, "disk": disk, "layers": layers, "config": run}
            | {"verified": options.verify}
        )
        return
    lines = {
        "digest": image.digest + (" (verified)" if options.verify else ""),
        "source": image.source,
        "platform": image.config.platform,
        "root": root,
        "disk": disk["path"] if disk else "- (made when a virtual machine first needs it)",
        "pulled": time.strftime("%Y-%m-%d %H:%M", time.localtime(image.pulled)),
        "user": run.user or "root",
        "workdir": run.working_dir or "-",
        "runs": " ".join(run.command) or "-",
    }
    for name, text in lines.items():
        print(f"{name:<9}{remote.safe(text)}")
    for name, value in sorted(run.environment().items()):
        print(f"{'env':<9}{remote.safe(f'{name}={value}')}")
    for blob in image.manifest.layers:
        print(f"{'layer':<9}{blob.digest} {blob.size}")


def _disk(image: "OciImage") -> dict[str, Any] | None:
    """Where machines have it from; None where none was made yet."""
    import os.path

    from agentd.image.oci import disk
    from agentd.model.errors import AgentdError

    place = store().roots.place(image.chain)
    try:
        found = disk.about(place)
    except AgentdError:
        found = None  # ``verify`` says so
    if found is None:
        return None
    return {"path": os.path.join(place, disk.DISK), "size": found.size, "digest": found.digest}


def verify_images(options: argparse.Namespace) -> int:
    """Verify them; return 0, or 1 where an image is damaged."""
    images = store()
    states = images.verify(options.names)
    if options.json:
        remote.print_json([{"name": n, "state": wrong or "ready"} for n, wrong in states.items()])
        return int(any(states.values()))
    if not states:
        print(f"no images in {images.folder} (agentd image pull)", file=sys.stderr)
    for name, wrong in states.items():
        print(remote.safe(wrong or f"{name} is what was pulled"))
    return int(any(states.values()))
