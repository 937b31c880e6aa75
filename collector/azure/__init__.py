"""Azure: what is pulled from it, through one client."""
