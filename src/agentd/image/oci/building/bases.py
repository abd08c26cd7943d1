"""The images that a build starts of, and the roots that its RUNs get: leased, or unpacked."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from agentd.image.model import Corrupt, NotFound
from agentd.image.oci import layout, reuse
from agentd.image.oci.building.stages import BuildStages
from agentd.image.oci.building.state import NEVER, BuiltLayer, StageState
from agentd.image.oci.roots import ROOT
from agentd.image.oci.steps import BuiltStep
from agentd.image.oci.store import OciStore
from agentd.image.oci.unpacking import unpack
from agentd.image.oci.values import (
    CONFIG,
    LAYER,
    MANIFEST,
    Descriptor,
    OciConfig,
    OciImage,
    OciManifest,
    RootFs,
    architecture,
    chain_id,
    chain_ids,
    check_digest,
    decode,
)
from agentd.image.oci.work import WorkFolder

Pull = Callable[[str], OciImage]


class _Told(msgspec.Struct, rename="pascal"):
    """What steps read or change of a configuration, beside what every image's is checked for."""

    env: list[str] | None = None
    labels: dict[str, str] | None = None
    cmd: list[str] | None = None
    entrypoint: list[str] | None = None
    shell: list[str] | None = None
    exposed_ports: dict[str, Any] | None = None
    volumes: dict[str, Any] | None = None
    on_build: list[str] | None = None
    user: str | None = None
    working_dir: str | None = None
    stop_signal: str | None = None


class _Whole(msgspec.Struct):
    config: _Told | None = None
    history: list[dict[str, Any]] | None = None
    created: str | None = None
    author: str | None = None


def configuration(raw: bytes) -> dict[str, Any]:
    """Return an image's, with all that is not known here. Raises Corrupt."""
    decode(raw, _Whole, "configuration")
    return decode(raw, dict[str, Any], "configuration")


class Bases:
    """``pull`` fetches what the store does not have, by a registry's reference."""

    def __init__(self, store: OciStore, work: WorkFolder, pull: Pull, seconds: float) -> None:
        self._store, self._work, self._pull, self._seconds = store, work, pull, seconds
        self._images: dict[str, OciImage] = {}
        self._unpacked: dict[str, str] = {}  # chains, and the folders in which their roots are

    def image(self, name: str) -> OciImage:
        """Find an image, or pull it. Raises ImageError, InvalidInput."""
        if name not in self._images:
            try:
                image = self._store.hold(name.rpartition("@")[2], self._work)
            except NotFound:
                image = self._store.hold(self._pull(name).digest, self._work)
            self._images[name] = image
        return self._images[name]

    @contextlib.contextmanager
    def root(self, state: StageState) -> Iterator[str]:
        """Return the path of a root with all layers, for as long as it is used."""
        lease = self._store.roots.lease(state.chain)
        if lease is not None:
            with lease:
                yield lease.path
            return
        yield os.path.join(self.folder(state), ROOT)

    @contextlib.contextmanager
    def beneath(self, state: StageState) -> Iterator[tuple[str | None, int]]:
        """Return a root that is there, and how many of the layers it has; those above it were built
        here, so that their archives can be read. (None, 0) where they are all."""
        chains = chain_ids(layer.diff_id for layer in state.layers)
        for count in range(len(state.layers), 0, -1):
            chain = chains[count]
            if chain in self._unpacked:
                yield os.path.join(self._unpacked[chain], ROOT), count
                return
            lease = self._store.roots.lease(chain)
            if lease is not None:
                with lease:
                    yield lease.path, count
                return
            if not state.layers[count - 1].plain:
                yield os.path.join(self._made(state.layers[:count]), ROOT), count
                return
        yield None, 0

    def folder(self, state: StageState) -> str:
        """Return where its root is unpacked, with what describes it: of this build alone."""
        return self._made(state.layers)

    def keep(self, state: StageState) -> str:
        """Return the same, for the store to take: it is not this build's any more."""
        path = self._made(state.layers)
        del self._unpacked[state.chain]
        return path

    def described(self, state: StageState) -> OciImage:
        """Return it as an image that is in no store: for a RUN."""
        whole = dict(state.config)
        whole["WorkingDir"] = state.workdir
        config = decode(
            msgspec.json.encode(
                {"architecture": architecture(), "os": "linux", "config": whole}
                | {"rootfs": RootFs(tuple(layer.diff_id for layer in state.layers))}
            ),
            OciConfig,
            "configuration",
        )
        nothing = Descriptor(CONFIG, state.chain, 0)
        blobs = tuple(layer.blob for layer in state.layers)
        manifest = OciManifest(nothing, blobs)
        return OciImage("build", state.chain, "", 0.0, 0, state.chain, manifest, config)

    def _made(self, layers: list[BuiltLayer]) -> str:
        chain = chain_id(layer.diff_id for layer in layers)
        if chain not in self._unpacked:
            number = len(os.listdir(self._work.path))
            source = self._work.make(f"source{number}")
            blobs = layout.blobs_of(source)
            os.makedirs(blobs)
            for layer in layers:
                with contextlib.suppress(FileExistsError):
                    os.link(layer.path, os.path.join(blobs, os.path.basename(layer.path)))
            config = OciConfig(
                architecture=architecture(),
                os="linux",
                created=NEVER,
                rootfs=RootFs(tuple(layer.diff_id for layer in layers)),
            )
            manifest = OciManifest(
                layout.put(msgspec.json.encode(config), CONFIG, blobs),
                tuple(layer.blob for layer in layers),
            )
            whole = layout.put(msgspec.json.encode(manifest), MANIFEST, blobs)
            layout.write_index(source, whole)
            path = self._work.make(f"root{number}")
            unpack(path, source, manifest, config, self._seconds)
            self._unpacked[chain] = path
        return self._unpacked[chain]


def state_of(
    image: OciImage, around: BuildStages, given: dict[str, str], store: OciStore, work: WorkFolder
) -> StageState:
    """Return the state in which a stage begins that is FROM the image, whose blobs are ``work``'s
    from now on. Raises Corrupt."""
    state = StageState(around, configuration(store.blob(image.manifest.config.digest)), given)
    pairs = zip(image.manifest.layers, image.config.rootfs.diff_ids, strict=True)
    for blob, diff_id in pairs:
        path = take_blob(blob.digest, store, work)
        state.layers.append(BuiltLayer(blob, diff_id, path, plain=False))
    return state


def take_blob(digest: str, store: OciStore, work: WorkFolder) -> str:
    """Return the path of a blob of the store's, which is ``work``'s from now on. Raises Corrupt
    where it is gone."""
    path = os.path.join(work.blobs, check_digest(digest))
    with contextlib.suppress(FileExistsError):
        try:
            os.link(store.blob_path(digest), path)
        except FileNotFoundError:
            raise Corrupt(f"the blob {digest} is gone") from None
    return path


def take_built(step: BuiltStep, store: OciStore, work: WorkFolder) -> str:
    """Return the path of the layer that a step became, hashed, which is ``work``'s from now on.
    Raises Corrupt where it is gone or damaged: the step is done anew."""
    path = os.path.join(work.blobs, check_digest(step.digest))
    blob = Descriptor(LAYER, step.digest, step.size)
    if not os.path.lexists(path) and not reuse.link(store, blob, path):
        raise Corrupt(f"the blob {step.digest} is gone or damaged")
    return path


def whole_config(state: StageState) -> dict[str, Any]:
    """Return the configuration of a finished image, as it is written."""
    told = {"architecture": architecture(), "os": "linux"} | state.whole
    told["created"] = state.created
    told["config"] = state.config
    told["history"] = state.history
    told["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in state.layers]}
    return told
