"""``agentd image``: OCI images, pulled or built, and machine images, which virtual machines boot.

A name is of one of them only; ``image_oci`` has what is done with the former.
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from agentd.client.cli import image_build, image_cache, image_oci, remote, table
from agentd.client.cli.parser import Parser

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
    options = _parser().parse_args(words)
    return int(options.run(options))


def _parser() -> Parser:
    parser = Parser(
        prog="agentd image",
        description="OCI images, and machine images: the kernels and root file systems that "
        "virtual machines start from.",
        epilog=_EXAMPLES,
    )
    actions = parser.actions()
    pull = image_oci.pull_parser(actions)
    pull.set_defaults(run=_pull)
    image_build.build_parser(actions).set_defaults(run=_build)
    commit = image_oci.commit_parser(actions)
    commit.set_defaults(run=image_oci.commit)
    push = image_oci.push_parser(actions)
    push.set_defaults(run=image_oci.push)
    listing = actions.add(
        "ls",
        "list the images, and what the cache holds beside them",
        "  agentd image ls\n  agentd image ls --json | jq '.[] | .name'\n",
    )
    listing.set_defaults(run=_ls)
    inspect = actions.add(
        "inspect",
        "show what an image is made of",
        "  agentd image inspect\n  agentd image inspect default --verify\n",
    )
    inspect.add_argument("name", metavar="NAME", nargs="?", default="default")
    inspect.add_argument("--verify", action="store_true", help="hash every file again")
    inspect.set_defaults(run=_inspect)
    verify = image_oci.verify_parser(actions)
    verify.set_defaults(run=image_oci.verify)
    remove = actions.add("rm", "remove images", "  agentd image rm small mine\n")
    remove.add_argument("names", metavar="NAME", nargs="+")
    remove.set_defaults(run=_rm)
    prune = actions.add(
        "prune",
        "remove what no image needs, and what is kept beside machine images",
        "  agentd image prune\n",
    )
    prune.set_defaults(run=_prune)
    for each in (pull, commit, push, listing, inspect, verify, remove, prune):
        each.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _pull(options: argparse.Namespace) -> int:
    with _Progress() as progress:
        image = image_oci.pull(options, progress.step)
    if options.json:
        remote.print_json(image_oci.summary(image))
    else:
        print(f"{image.name} {image.digest}")
    return 0


def _build(options: argparse.Namespace) -> int:
    if image_build.is_of_dockerfile(options):
        return image_build.build(options)
    options.name = options.name or "default"
    with _Progress() as progress:
        image = _built(options, progress.step)
    if options.json:
        remote.print_json(image)
    else:
        print(f"{image.name} {image.digest}")
        for note in image.notes:
            print(f"note: {note}", file=sys.stderr)
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
        (row["name"], row["kind"], _origin(row), _size(row["size"]), row["state"]) for row in found
    ]
    table.show(("IMAGE", "KIND", "FROM", "SIZE", "STATE"), rows)
    held = image_cache.parts(store)
    if held:
        told = ", ".join(f"{_size(part.bytes)} {part.what}" for part in held)
        table.paragraph(f"\non disk: {told}; agentd image prune removes all but the images")
    return 0


def _origin(row: dict[str, Any]) -> str:
    if row["kind"] == "oci":
        return str(row["source"])
    return f"{row['base']}, Linux {row['kernel']}" if row["kernel"] else str(row["base"])


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _prune(options: argparse.Namespace) -> int:
    from agentd.image.store import Store

    freed, removed = image_cache.prune(Store()), image_oci.store().prune()
    freed += removed.bytes
    image_oci.tell_kept(removed)
    if options.json:
        remote.print_json({"freed": freed, "in_use": removed.in_use})
    else:
        print(f"{_size(freed)} freed")
    return 0


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
        print(f"{name:<9}{text}")
    for name, file in sorted(manifest.files.items()):
        print(f"{'file':<9}{name} {file.size} sha256:{file.sha256}")
    for name, version in sorted(image.packages.items()):
        print(f"{'package':<9}{name} {version}")
    for note in image.notes:
        print(f"{'note':<9}{note}")
    return 0


def _rm(options: argparse.Namespace) -> int:
    from agentd.image.store import Store

    store, others = Store(), image_oci.store()
    names = list(dict.fromkeys(options.names))
    for name in names:
        if name in store.ls():
            store.remove(name)
        elif image_oci.is_known(name):
            image_oci.tell_kept(others.remove(name))
        else:
            raise _unknown(name, store)
    if options.json:
        remote.print_json({"removed": names})
    return 0


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


class _Progress:
    """A bar on a terminal, else a line a step; on stderr, and gone when it is done."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, what: str, done: int, total: int) -> None:
        if what.startswith("note: "):
            return  # what was asked for needs no word of that
        if not sys.stderr.isatty():
            print(f"agentd image: {what}", file=sys.stderr)
            return
        if self._bar is None:
            self._start()
        self._bar.update(self._task, description=what, completed=done, total=total)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(24), TimeElapsedColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()
