"""Says what is wrong with a host's installation, and what to do about it."""
