"""``agentd image``: OCI images, pulled or built, and machine images, which virtual machines boot.

A name is of one of them only; ``image_oci`` has what is done with the former.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from agentd.client.cli import image_build, image_cache, image_oci, remote, table
from agentd.client.cli.parser import Parser
from agentd.client.cli.progress import Display
from agentd.model.units import readable_size

if TYPE_CHECKING:
    from agentd.image.model import Image, NotFound, Progress
    from agentd.image.store import Store

_EXAMPLES = """\
examples:
  agentd image pull oci:./layout:tag --name mine
  agentd image build -t mine .
  agentd image commit sbx-abcdefghijkl mine:1
  agentd image push mine oci:./layout:tag
  agentd image ls
  agentd image build
  agentd image build --name small --base busybox
  agentd image build --name mine --kernel ./vmlinux --initramfs ./initramfs.cpio
  agentd image inspect default --verify
  agentd run --backend qemu --image small -- uname -r
"""


def main(words: list[str]) -> int:
    return _parser().run(words)


def _parser() -> Parser:
    parser = Parser(
        prog="agentd image",
        description="OCI images, and machine images: the kernels and root file systems that "
        "virtual machines start from.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions(remote.json_option)
    image_oci.add_pull(actions, _pull)
    image_build.add_build(actions, _build)
    image_oci.add_commit(actions)
    image_oci.add_push(actions)
    actions.add(
        "ls",
        "list the images, and what the cache holds beside them",
        "  agentd image ls\n  agentd image ls --json | jq '.[] | .name'\n",
        _ls,
    )
    inspect = actions.add(
        "inspect",
        "show what an image is made of",
        "  agentd image inspect\n  agentd image inspect default --verify\n",
        _inspect,
    )
    inspect.add_argument(
        "name", metavar="NAME", nargs="?", default="default", help="of an image here"
    )
    inspect.add_argument("--verify", action="store_true", help="hash every file again")
    image_oci.add_verify(actions)
    remove = actions.add("rm", "remove images", "  agentd image rm small mine\n", _rm)
    remove.add_argument("names", metavar="NAME", nargs="+", help="of images here")
    about = "remove what no image needs, and what is kept beside machine images"
    actions.add("prune", about, "  agentd image prune\n", _prune)
    return parser


def _pull(options: argparse.Namespace) -> int:
    with Display("image") as display:
        image = image_oci.pull(options, display.step)
    told = remote.tell(options, image_oci.summary(image), f"{image.name} {image.digest}")
    if (note := image.config.remark()) and not options.json:
        print(f"note: {remote.safe(note)}", file=sys.stderr)
    return told


def _build(options: argparse.Namespace) -> int:
    if image_build.is_of_dockerfile(options):
        return image_build.build(options)
    options.name = options.name or "default"
    with Display("image") as display:
        image = _built(options, display.step)
    remote.tell(options, image, f"{image.name} {image.digest}")
    for note in () if options.json else image.notes:
        print(f"note: {remote.safe(note)}", file=sys.stderr)
    return 0


def _built(options: argparse.Namespace, progress: "Progress") -> "Image":
    from agentd.image.build import build, ensure, rebuild
    from agentd.image.store import Store

    known = Store().ls()
    image_oci.check_free(options.name)
    own = {name: getattr(options, name) for name in ("kernel", "initramfs", "rootfs")}
    if options.base or any(own.values()) or options.name not in known:
        return build(options.name, options.base or "debian", progress, **own)
    return (rebuild if options.force else ensure)(options.name, progress)


def _ls(options: argparse.Namespace) -> int:
    from agentd.image.store import Store

    store = Store()
    found = [_summary(store, name) for name in store.ls()] + image_oci.rows()
    found.sort(key=lambda row: str(row["name"]))
    if options.json:
        remote.print_json(found)
        return 0
    if not found:
        print(f"no images in {store.folder} (agentd image pull, or build)", file=sys.stderr)
        return 0
    rows = [
        (row["name"], row["kind"], _origin(row), readable_size(row["size"]), row["state"])
        for row in found
    ]
    table.show(("IMAGE", "KIND", "FROM", "SIZE", "STATE"), rows)
    held = image_cache.parts(store)
    if held:
        told = ", ".join(f"{readable_size(part.bytes)} {part.what}" for part in held)
        table.paragraph(f"\non disk: {told}; agentd image prune removes all but the images")
    return 0


def _origin(row: dict[str, Any]) -> str:
    if row["kind"] == "oci":
        return str(row["source"])
    return f"{row['base']}, Linux {row['kernel']}" if row["kernel"] else str(row["base"])


def _prune(options: argparse.Namespace) -> int:
    from agentd.image.store import Store

    freed, removed = image_cache.prune(Store()), image_oci.store().prune()
    freed += removed.bytes
    image_oci.tell_kept(removed)
    told = {"freed": freed, "in_use": removed.in_use}
    return remote.tell(options, told, f"{readable_size(freed)} freed")


def _summary(store: Any, name: str) -> dict[str, Any]:
    from agentd.image.build import is_stale
    from agentd.model.errors import SandboxError

    row: dict[str, Any] = {"name": name, "kind": "machine", "base": "", "kernel": ""}
    row |= {"size": 0, "digest": ""}
    try:
        _, manifest = store.manifest(name)
        row |= {"base": manifest.base, "kernel": manifest.kernel_release}
        row |= {"digest": manifest.digest, "size": sum(f.size for f in manifest.files.values())}
        store.get(name)
        state = "rebuilt when next used" if is_stale(store, name) else "ready"
    except SandboxError as error:
        state = str(error)
    return row | {"state": state}


def _inspect(options: argparse.Namespace) -> int:
    from agentd.image.store import Store

    store = Store()
    if options.name not in store.ls():
        other = image_oci.found(options.name)
        if other is None:
            raise _unknown(options.name, store)
        image_oci.inspect(other, options)
        return 0
    image = store.get(options.name, full=options.verify)
    _, manifest = store.manifest(options.name)
    if options.json:
        import msgspec

        remote.print_json(msgspec.to_builtins(image) | {"files": manifest.files})
        return 0
    lines = {
        "digest": image.digest + (" (verified)" if options.verify else ""),
        "base": image.base,
        "kernel": image.kernel_release,
        "python": image.python or "-",
        "folder": image.folder,
    }
    for name, text in lines.items():
        print(f"{name:<9}{remote.safe(text)}")
    for name, file in sorted(manifest.files.items()):
        print(f"{'file':<9}{remote.safe(name)} {file.size} sha256:{file.sha256}")
    for name, version in sorted(image.packages.items()):
        print(f"{'package':<9}{remote.safe(f'{name} {version}')}")
    for note in image.notes:
        print(f"{'note':<9}{remote.safe(note)}")
    return 0


def _rm(options: argparse.Namespace) -> int:
    from agentd.image.store import Store

    store, others = Store(), image_oci.store()

    def remove(name: str) -> None:
        if name in store.ls():
            store.remove(name)
        elif image_oci.is_known(name):
            image_oci.tell_kept(others.remove(name))
        else:
            raise _unknown(name, store)

    return remote.to_each(options, options.names, remove, remote.removed)


def _unknown(name: str, store: "Store") -> "NotFound":
    """What is raised for a name that neither kind of image has."""
    from agentd.image.model import NotFound
    from agentd.model.spec import DEFAULT_IMAGE

    fix = "see agentd image ls, or fetch it: agentd image pull"
    if name == DEFAULT_IMAGE:
        fix = "agentd image build makes that machine image"
    return NotFound(
        f"no image {name!r} in {image_oci.store().folder}, nor a machine image in {store.folder}",
        remediation=fix,
    )
