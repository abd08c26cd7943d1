"""Whether programs that work outside of a sandbox work inside: see ``__main__``."""
