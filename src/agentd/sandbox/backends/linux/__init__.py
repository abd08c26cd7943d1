"""The namespace wall: a zygote in a read-only root, one clone3 a sandbox, the agent as PID 1."""
