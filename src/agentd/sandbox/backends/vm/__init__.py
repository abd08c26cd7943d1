"""What microVM backends share: the keeper of their processes, run folders, the guest's set-up."""

#: Of a cold boot, under software emulation or beside others, on a machine that is busy.
BOOT_SECONDS = 120.0
