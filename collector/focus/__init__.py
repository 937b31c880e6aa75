"""FOCUS out: a month of model spend in the columns of the FinOps Open Cost and Usage Specification 1.2, 1.3 or 1.4."""

from collector.focus.check import faults
from collector.focus.columns import VERSIONS, Version, columns
from collector.focus.export import FORMATS, MEDIA_TYPES, ExportFocus, Form, Written, checked, export, meta, month_asked, run

__all__ = [
    "FORMATS",
    "MEDIA_TYPES",
    "VERSIONS",
    "ExportFocus",
    "Form",
    "Version",
    "Written",
    "checked",
    "columns",
    "export",
    "faults",
    "meta",
    "month_asked",
    "run",
]
