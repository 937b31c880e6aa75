"""A simulated Azure: a real HTTP server with a world behind it, for the demo, the tests and anybody without an account."""

from collector.azure.simulator.costs import Export
from collector.azure.simulator.estate import Estate, Subscription
from collector.azure.simulator.faults import RESTATEMENTS, Fault, Faults
from collector.azure.simulator.invented import InventedWorld, TruthKey
from collector.azure.simulator.server import Call, Simulator

__all__ = ["RESTATEMENTS", "Call", "Estate", "Export", "Fault", "Faults", "InventedWorld", "Simulator", "Subscription", "TruthKey"]
