"""From a credential to a principal. Imports the model alone."""
