"""A bill file becomes current charges.

``read_bill`` recognises the file and yields its rows, ``land`` puts them into the database as the current parts of
their (subscription, billing month). A file is taken whole or refused whole: what cannot be read is named by file, row
and column, and nothing of it is ever visible. Which deployment a charge belongs to is not decided here but at read time.
"""

from collector.billing.classify import Item
from collector.billing.formats import BillFile, BillRow, amortized, deliveries, read_bill, together
from collector.billing.landing import LandedPart, Landing, land

__all__ = ["BillFile", "BillRow", "Item", "LandedPart", "Landing", "amortized", "deliveries", "land", "read_bill", "together"]
