"""Mirrors the packages; ``walks`` goes end to end."""
