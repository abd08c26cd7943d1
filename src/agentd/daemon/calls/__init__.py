"""What is asked for, decided, done, and written down: the same for every way in."""
