"""Firecracker behind its jailer: a virtual machine on KVM, for production hosts."""
