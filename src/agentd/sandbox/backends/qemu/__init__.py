"""The QEMU wall: a virtual machine from a snapshot, software emulation where KVM does not work."""
