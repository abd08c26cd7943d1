"""What a sandbox has changed as the last layer of an image: its own, with that on top.

Without an image the layer is all that there is: workspace, home and /tmp, and what was changed of a
root that can be written to.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from agentd.image.model import NotFound
from agentd.image.oci import push
from agentd.image.oci.building.bases import state_of
from agentd.image.oci.building.expand import Expanded
from agentd.image.oci.building.layer import LayerWriter
from agentd.image.oci.building.make import described
from agentd.image.oci.building.stages import BuildStages
from agentd.image.oci.building.state import BuiltLayer, StageState, utc
from agentd.image.oci.building.syntax import Dockerfile, Instructed
from agentd.image.oci.pull import explained
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import LAYER, Descriptor, OciImage, check_digest
from agentd.image.oci.work import WorkFolder
from agentd.model.errors import Refused
from agentd.model.snapshot import SnapshotManifest
from agentd.model.spec import SandboxSpec
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.image_root import ImageRoot
from agentd.sandbox.backends.limits import on_this_kernel
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.exported import OF_A_SANDBOX, Exported, write_layer
from agentd.sandbox.backends.users import parse_user

_PIECE = 1 << 20
#: Walls that keep what is changed in one way (``exported.OF_A_SANDBOX``).
BACKENDS = ("linux", "oci", "gvisor")


def check(manifest: SnapshotManifest, path: str) -> None:
    """Raises Refused for a snapshot that is no image's layer, such as one of memory, and
    InvalidInput where ``write`` could not."""
    if manifest.fidelity != "files" or manifest.backend not in BACKENDS:
        raise Refused(
            "the snapshot is no image's layer",
            cause=f"backend {manifest.backend} keeps {manifest.fidelity} in a form of its own",
            remediation=f"take one of a sandbox behind {', '.join(BACKENDS)}",
        )
    if manifest.spec.packages:
        raise Refused(
            "the snapshot is of a sandbox with packages: an image would have none",
            remediation="install them in the image: agentd image build",
        )
    push.check_archive(path)


def write(manifest: SnapshotManifest, folder: str, path: str) -> None:
    """Write what a snapshot holds, its state in ``folder``, as ``oci-archive:PATH``.

    Raises Refused where its image is gone, SandboxError, ImageError.
    """
    store = OciStore()
    try:
        with store.work() as work:
            digest = kept.read_word(folder, "image")
            what = f"snapshot {manifest.id} was taken"
            image = image_of(digest, what, store) if digest else None
            told = Instructed("export", 0, {}, manifest.id)
            state = changed(folder, manifest.spec, image, told, store, work)
            digest, made, config = described(state, work)
            size = sum(blob.size for blob in (made.config, *made.layers))
            whole = OciImage(manifest.id, digest, "", 0.0, size, state.chain, made, config)
            push.archive(whole, path, work)
    except OSError as error:
        raise explained(error, store, "exported") from error


def pieces(export: Callable[[str], None]) -> Iterator[bytes]:
    """Yields what ``export`` writes to a path, once all of it is written. Raises as that does."""
    with OciStore().work() as work:
        path = os.path.join(work.path, "archive")
        export(path)
        file = open(path, "rb")  # noqa: SIM115  (closed by the generator, or with it)
    return _read(file)


def _read(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece


def image_of(digest: str, what: str, store: OciStore) -> OciImage:
    """Returns the image it started of, which its name may not mean any more. Raises Refused."""
    try:
        return store.get(digest)
    except NotFound as error:
        raise Refused(
            f"the image that {what} of is not there any more",
            cause=digest,
            remediation="pull or build that one again, under any name",
        ) from error


def changed(
    folder: str,
    spec: SandboxSpec,
    image: OciImage | None,
    told: Instructed,
    store: OciStore,
    work: WorkFolder,
) -> StageState:
    """Returns ``image`` with a layer of the kept files in ``folder``, whose blobs are ``work``'s;
    ``told`` is what its history says of that. Raises InvalidInput, Refused, SandboxError,
    ImageError."""
    around = BuildStages(Dockerfile("", (), Expanded()), {}, ())
    if image is None:
        state = StageState(around, {}, {})
    else:
        state = state_of(image, around, {}, store, work)
    path = os.path.join(work.path, "layer")
    layer = LayerWriter(path)
    try:
        layer.bound = on_this_kernel(spec.limits).disk or layer.bound
        if image is None:
            empty = tempfile.mkdtemp(prefix="root", dir=work.path)
            _write(folder, empty, parse_user(spec.user), layer)
        else:
            with store.lease(image) as lease:
                root = ImageRoot(image, lease)
                try:
                    uid = root.uid() if spec.user is None else parse_user(spec.user)
                finally:
                    root.close()
                _write(folder, lease.path, uid, layer)
        digest, size = layer.finish()
    finally:
        layer.close()
    some = layer.entries > 0 or image is None
    if some:
        blob = os.path.join(work.blobs, check_digest(digest))
        os.replace(path, blob)
        state.layers.append(BuiltLayer(Descriptor(LAYER, digest, size), digest, blob, plain=True))
    else:
        os.unlink(path)
    state.remember(told, utc(int(time.time())) if some else None)
    return state


def _write(folder: str, root: str, uid: int, layer: LayerWriter) -> None:
    only = None if uid == 0 and identity.available() else uid
    write_layer(Exported(folder, root, only, OF_A_SANDBOX), layer)
