"""The one way in which this device fails."""


class Violation(Exception):
    """The guest or its VMM broke the protocol; the device ends, and the text says over what."""
