"""How the agent is born behind a wall of the shared kernel: a zygote, one fork a sandbox."""
