"""What microVM backends share: the keeper of their processes, run folders, the guest's set-up."""
