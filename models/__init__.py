"""Values, tables and the read side. Imports neither ``collector`` nor ``dashboard``."""
