"""The kernel, through ctypes. Standard library only; imports nothing else of agentd."""
