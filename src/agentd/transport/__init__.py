"""The host end of the guest protocol. It treats everything that arrives as hostile."""
