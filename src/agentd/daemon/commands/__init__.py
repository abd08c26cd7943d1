"""Commands of sandboxes: begun, driven, kept, found again, and how they end."""
