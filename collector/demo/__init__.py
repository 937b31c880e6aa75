"""The sample world of ``meterbridge demo``: a company that does not exist, with traffic, an Azure, bills and a past."""

from collector.demo.azure import SampleAzure
from collector.demo.run import feed
from collector.demo.world import World

__all__ = ["SampleAzure", "World", "feed"]
