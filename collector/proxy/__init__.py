"""The metering reverse proxy: passes calls to a deployment through byte for byte, and reports each to a meterbridge service.

It knows no database and no price. What a call was is read by the capture code of the service itself; delivery is
``meterbridge_client``'s. A fault of ours in reading, asking or reporting never changes what the caller gets.
"""
