"""The sandboxes of a daemon: made, found, renewed, ended, and taken over from the daemon before."""
