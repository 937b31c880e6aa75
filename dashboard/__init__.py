"""Everything a person looks at. Reads ``models.ledger`` only; knows no ``collector``."""
