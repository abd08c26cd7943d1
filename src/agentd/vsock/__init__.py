"""A virtio-vsock device in user space (vhost-user), for machines whose kernel or VMM has none.

Standard library and ``agentd.linux`` only.
"""
