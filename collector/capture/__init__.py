"""One module per wire format, from bytes to the canonical usage event."""
