"""Calls of capabilities: what carries one from who asks to the sandbox and back."""
