"""A sandbox's changes become the last layer of an image: its own image with that on top."""

import os
import shutil
import tempfile
import time

from agentd.image.model import NotFound
from agentd.image.oci.building.bases import Bases, state_of
from agentd.image.oci.building.expand import Expanded
from agentd.image.oci.building.layer import LayerWriter
from agentd.image.oci.building.make import publish
from agentd.image.oci.building.stages import BuildStages
from agentd.image.oci.building.state import BuiltLayer, utc
from agentd.image.oci.building.syntax import Dockerfile, Instructed
from agentd.image.oci.pull import SECONDS, explained
from agentd.image.oci.source import check_name
from agentd.image.oci.store import OciStore
from agentd.image.oci.values import LAYER, Descriptor, OciImage, check_digest
from agentd.image.oci.work import WorkFolder
from agentd.image.store import Store
from agentd.model.errors import Refused, Unsupported
from agentd.model.image import ImageView
from agentd.model.spec import DEFAULT_IMAGE
from agentd.sandbox.backends import identity
from agentd.sandbox.backends.image_root import ImageRoot
from agentd.sandbox.backends.limits import on_this_kernel
from agentd.sandbox.backends.linux import kept
from agentd.sandbox.backends.linux.exported import OF_A_SANDBOX, Exported, write_layer
from agentd.sandbox.backends.users import parse_user
from agentd.sandbox.handle import SandboxHandle
from agentd.sandbox.manager import Manager

#: Those that keep what is changed in one way (``exported.OF_A_SANDBOX``).
_BACKENDS = ("linux", "oci", "gvisor")


def commit(manager: Manager, handle: SandboxHandle, name: str) -> ImageView:
    """Name an image of what the sandbox is now; one of that name is replaced.

    Raises InvalidInput, Conflict, Refused (it started of no OCI image, or host directories are
    mounted in it), Unsupported, ImageError.
    """
    check_name(name)
    _check(handle, name)
    store = OciStore()
    try:
        with store.work() as work:
            image = _committed(manager, handle, name, store, work)
    except OSError as error:
        raise explained(error, store) from error
    return ImageView(image.name, image.digest, len(image.manifest.layers), image.size)


def _check(handle: SandboxHandle, name: str) -> None:
    Store().check_free(name)
    if handle.spec.image == DEFAULT_IMAGE:
        raise Refused(
            f"sandbox {handle.id} did not start of an OCI image",
            remediation="create it with --image NAME, and --writable for all of its root",
        )
    if handle.backend not in _BACKENDS:
        raise Unsupported(
            f"backend {handle.backend} cannot commit a sandbox",
            remediation=f"create it with --backend {_BACKENDS[0]}",
        )


def _committed(
    manager: Manager, handle: SandboxHandle, name: str, store: OciStore, work: WorkFolder
) -> OciImage:
    folder = tempfile.mkdtemp(prefix="changes", dir=work.path)
    manager.capture(handle, folder)
    image = _image(kept.read_image(folder), handle, store)
    around = BuildStages(Dockerfile("", (), Expanded()), {}, ())
    state = state_of(image, around, {}, store, work)
    path = os.path.join(work.path, "layer")
    layer = LayerWriter(path)
    try:
        with store.lease(image) as lease:
            root = ImageRoot(image, lease)
            try:
                uid = root.uid() if handle.spec.user is None else parse_user(handle.spec.user)
            finally:
                root.close()
            only = None if uid == 0 and identity.available() else uid
            layer.bound = on_this_kernel(handle.spec.limits).disk or layer.bound
            write_layer(Exported(folder, lease.path, only, OF_A_SANDBOX), layer)
        digest, size = layer.finish()
    finally:
        layer.close()
    shutil.rmtree(folder)
    if layer.entries:
        blob = os.path.join(work.blobs, check_digest(digest))
        os.replace(path, blob)
        state.layers.append(BuiltLayer(Descriptor(LAYER, digest, size), digest, blob, plain=True))
    else:
        os.unlink(path)
    told = Instructed("commit", 0, {}, handle.id)
    state.remember(told, utc(int(time.time())) if layer.entries else None)
    bases = Bases(store, work, store.get, SECONDS)
    publish(state, name, f"sandbox:{handle.id}", store, work, bases)
    return store.get(name)


def _image(digest: str, handle: SandboxHandle, store: OciStore) -> OciImage:
    """The image that it started of, which its name may not mean any more."""
    try:
        return store.get(digest)
    except NotFound as error:
        raise Refused(
            f"the image that sandbox {handle.id} started of is not there any more",
            cause=digest,
            remediation="pull or build that one again, under any name",
        ) from error
