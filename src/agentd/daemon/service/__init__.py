"""What every way in asks for: sandboxes and processes of principals, on top of the pipeline."""
