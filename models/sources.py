"""Where facts are pulled from: leases of jobs, runs of pulls, the budget of calls, and what Azure said of quotas."""

from __future__ import annotations
