"""What can be asked for: the registry of capabilities, their schemas, and the built-in ones."""
