"""``agentd image build CONTEXT``: from a folder and a Dockerfile to an image in the store."""

import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from agentd.image.model import Progress
from agentd.image.oci import layout
from agentd.image.oci.building import source as files
from agentd.image.oci.building import syntax
from agentd.image.oci.building.bases import Bases, whole_config
from agentd.image.oci.building.build import ImageBuild, Options
from agentd.image.oci.building.ignore import MAX_BYTES, BadPattern, Ignored
from agentd.image.oci.building.running import Output, Runner
from agentd.image.oci.building.source import FileSource
from agentd.image.oci.building.stages import BuildStage, BuildStages, stages_of
from agentd.image.oci.building.state import PROXIES, StageState
from agentd.image.oci.pull import SECONDS, explained, pull
from agentd.image.oci.source import check_name
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import (
    CONFIG,
    MANIFEST,
    OciConfig,
    OciImage,
    OciManifest,
    check_layers,
    check_told,
    config_of,
)
from agentd.image.oci.work import WorkFolder
from agentd.model.egress import RESTRICTED, cassette, network
from agentd.model.errors import InvalidInput

DOCKERFILE = "Dockerfile"
_IGNORE = ".dockerignore"
_EPOCH = "SOURCE_DATE_EPOCH"


class Wanted(NamedTuple):
    """``file`` is a path, ``-`` for stdin, None for ``Dockerfile`` in the context."""

    context: str
    name: str
    file: str | None = None
    args: Mapping[str, str] = {}
    target: str | None = None
    net: str = "none"  # or "host", or rules: "pypi,api.example.com"
    cache: bool = True
    insecure: bool = False
    seconds: float = SECONDS


class BuiltImage(NamedTuple):
    """``unused`` are arguments that no ARG has asked for."""

    image: OciImage
    steps: int
    cached: int
    unused: tuple[str, ...]


def make(
    wanted: Wanted,
    runner: Runner,
    progress: Progress,
    output: Output,
    store: OciStore | None = None,
) -> BuiltImage:
    """Build an image. Raises InvalidInput, DockerfileError (its line), BuildFailed (a RUN),
    Unavailable, ImageError; nothing is left in the store then."""
    name = check_name(wanted.name)
    kind, rules = network(wanted.net)
    if word := cassette(rules):
        raise InvalidInput(f"a build cannot {word}", remediation=f"leave {word} out of --net")
    if kind == RESTRICTED:  # one spelling, as it is a part of what a step is looked up by
        wanted = wanted._replace(net=",".join(rules))
    store = store or OciStore()
    stages, target = _stages(wanted)
    context = _context(wanted)
    try:
        with store.work() as work:
            return _built(
                wanted, name, stages, target, context, runner, (progress, output), store, work
            )
    except OSError as error:
        raise explained(error, store, "built") from error
    finally:
        context.close()


def _built(
    wanted: Wanted,
    name: str,
    stages: BuildStages,
    target: BuildStage,
    context: FileSource,
    runner: Runner,
    told: tuple[Progress, Output],
    store: OciStore,
    work: WorkFolder,
) -> BuiltImage:
    progress, output = told

    def fetch(reference: str) -> OciImage:
        progress(f"pulling {reference}", 0, 0)
        source = f"docker://{reference}"
        seconds, insecure = wanted.seconds, wanted.insecure
        return pull(source, progress=progress, store=store, seconds=seconds, insecure=insecure)

    bases = Bases(store, work, fetch, wanted.seconds)
    options = Options(wanted.args, wanted.net, wanted.cache, _epoch())
    build = ImageBuild(stages, context, store, work, bases, runner, options, progress, output)
    state = build.run(target)
    context_path = os.fsencode(os.path.abspath(wanted.context)).decode("utf-8", "replace")
    source = f"dockerfile:{context_path}"
    publish(state, name, source, store, work, bases)
    asked = set(PROXIES) | _asked(stages)
    unused = tuple(sorted(set(wanted.args) - asked))
    return BuiltImage(store.get(name), build.steps, build.cached, unused)


def publish(
    state: StageState, name: str, source: str, store: OciStore, work: WorkFolder, bases: Bases
) -> None:
    """Put a finished stage into the store under ``name``. Raises ImageError, OSError."""
    digest, _, checked = described(state, work)
    store.mend(state.chain)
    with store.roots.making(state.chain) as ours:
        if ours:
            work.unpacked = bases.keep(state)
        store.publish(name, source, digest, checked, work)


def described(state: StageState, work: WorkFolder) -> tuple[str, OciManifest, OciConfig]:
    """Return the digest of its manifest, which is written to ``work`` with its configuration; and
    both. Raises ImageError, OSError."""
    check_layers(len(state.layers))
    told = msgspec.json.encode(whole_config(state), order="sorted")
    check_told(told)
    config = layout.put(told, CONFIG, work.blobs)
    manifest = OciManifest(config, tuple(layer.blob for layer in state.layers))
    digest = layout.put(msgspec.json.encode(manifest), MANIFEST, work.blobs).digest
    return digest, manifest, config_of(told, manifest)


def _stages(wanted: Wanted) -> tuple[BuildStages, BuildStage]:
    name, text = _dockerfile(wanted)
    stages = stages_of(syntax.parse(text, name), dict(wanted.args))
    if wanted.target is None:
        return stages, stages.all[-1]
    target = stages.find(wanted.target)
    if target is None:
        known = ", ".join(stage.name or str(stage.number) for stage in stages.all)
        raise InvalidInput(
            f"{name} has no stage {wanted.target!r}", remediation=f"use one of: {known}"
        )
    return stages, target


def _dockerfile(wanted: Wanted) -> tuple[str, str]:
    """Its name for errors, and its text. Raises InvalidInput."""
    if wanted.file == "-" and sys.stdin is None:  # it was closed before we started
        raise InvalidInput("standard input is closed", remediation="name a file instead of -")
    if wanted.file == "-":
        return "-", files.text_of(sys.stdin.fileno(), "the standard input", syntax.MAX_BYTES)
    if wanted.file is not None:
        try:
            fd = os.open(wanted.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidInput(
                f"{wanted.file} cannot be read: {error.strerror}", remediation="give it with -f"
            ) from error
        try:
            files.check_plain(fd, wanted.file)
            return wanted.file, files.text_of(fd, wanted.file, syntax.MAX_BYTES)
        finally:
            os.close(fd)
    text = files.read_small(wanted.context, DOCKERFILE, syntax.MAX_BYTES)
    if text is None and not os.path.isdir(wanted.context):
        raise InvalidInput(
            f"context {wanted.context} is no directory", remediation="give a folder that is there"
        )
    if text is None:
        raise InvalidInput(
            f"there is no {DOCKERFILE} in {wanted.context}", remediation="name one: -f FILE"
        )
    return DOCKERFILE, text


def _context(wanted: Wanted) -> FileSource:
    """Raises InvalidInput."""
    text, name = None, f"{wanted.file}{_IGNORE}"
    if wanted.file not in (None, "-"):
        folder, base = os.path.split(os.path.abspath(str(wanted.file)))
        name = f"{base}{_IGNORE}"
        text = files.read_small(folder, name, MAX_BYTES)
    if text is None:
        name = _IGNORE
        text = files.read_small(wanted.context, name, MAX_BYTES)
    try:
        return FileSource(wanted.context, "context", Ignored(text or ""))
    except BadPattern as error:
        raise InvalidInput(f"{name}: {error}", remediation="mend the pattern") from error


def _epoch() -> int | None:
    """SOURCE_DATE_EPOCH, where it is set. Raises InvalidInput."""
    text = os.environ.get(_EPOCH, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 11:
        raise InvalidInput(
            f"{_EPOCH}={text[:80]!r} is no time", remediation="give seconds since 1970"
        )
    return int(text)


def _asked(stages: BuildStages) -> set[str]:
    bodies = [*stages.file.instructions]
    words = (each.text.split() for each in bodies if each.word == "ARG")
    return {word.partition("=")[0] for found in words for word in found}
