"""The HTTP routes: parse, call, shape."""
