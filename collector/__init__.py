"""Everything that writes: ingest, bills, prices, the API, jobs and the command line. Never imports ``dashboard``."""
