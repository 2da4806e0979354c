"""Search algorithms: they know integers and fitness, not networks. numpy only."""

from __future__ import annotations

from fastprune.search.base import Candidate, SearchAlgorithm, Space
from fastprune.search.bee_colony import BeeColony
from fastprune.search.evolution import Evolution
from fastprune.search.random_search import RandomSearch

__all__ = ["BeeColony", "Candidate", "Evolution", "RandomSearch", "SearchAlgorithm", "Space"]
