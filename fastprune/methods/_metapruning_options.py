"""Options of MetaPruning, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from fastprune.errors import ConfigError, FastpruneError, PlanError
from fastprune.graph import ChannelGraph, GeneTable
from fastprune.methods import MethodOptions, PruneOptions
from fastprune.methods._structures import (
    Limits,
    check_structure,
    common_problems,
    reach,
    structure_space,
)
from fastprune.methods._trials import TrialLog
from fastprune.models import Network
from fastprune.search import Evolution
from fastprune.training import TrainingOptions
from fastprune.training.options import Precision

__all__ = [
    "PRUNINGNET",
    "TRIALS",
    "MetaPruningOptions",
    "algorithm_of",
    "table_of",
]

TRIALS = "trials.jsonl"
PRUNINGNET = "pruningnet.safetensors"


class MetaPruningOptions(MethodOptions):
    """Options of MetaPruning.

    Attributes:
        pruningnet: how the pruningnet is trained. None: SGD at 0.1, momentum 0.9, weight decay
            1e-4, 32 epochs with a tenth of the rate at each quarter, label smoothing 0.1.
        structures: with several ranks, whether a step of the pruningnet's training is of one
            structure, ``shared`` by all, as in one process, or of one of each ``rank``. Ranks of
            different structures have different channels, whose statistics cannot be joined.
        earlier: an earlier run's directory, whose pruningnet is taken instead of training one.
        gene: ids to keep by, in any published layout; given, nothing is searched.
        candidate: number of a candidate of the earlier run's search, whose gene is taken; nothing
            is searched then.
        weights: what the found network begins fine-tuning with: ``fresh`` ones, as published, or
            those that the pruningnet generates for it.
        population: candidates of each iteration.
        select_num: best candidates so far, which the next ones are bred from.
        mutation_num: candidates of an iteration that are mutations.
        crossover_num: candidates of an iteration that are crossovers; the rest are random.
        iterations: populations in all, the first, random one counted.
        mutation_probability: of each id of a mutation to change.
        moves: what changes at once: each ``id`` by itself, or all ids of a ``stage``.
        fill: raise the ids of every candidate, at random, for as long as it is within the budget.
        batches: training batches from which every candidate's batch norm statistics are taken.
        racing: drop a candidate before it saw all validation images, once a paired test says that
            it will not be among the best ``select_num`` of its population.
        precision: of the arithmetic while candidates are measured.
        channels_last: memory format of the images while candidates are measured.
        memory_limit: bytes that the results of layers may take while candidates are measured.
    """

    name: Literal["metapruning"] = "metapruning"
    pruningnet: TrainingOptions | None = None
    structures: Literal["shared", "rank"] = "shared"
    earlier: str | None = None
    gene: Annotated[tuple[float, ...] | None, BeforeValidator(lambda given: _numbers(given))] = (
        None
    )
    candidate: int | None = Field(default=None, ge=0)
    weights: Literal["fresh", "generated"] = "fresh"
    population: int = Field(default=50, ge=1, le=100_000)
    select_num: int = Field(default=10, ge=1)
    mutation_num: int = Field(default=25, ge=0)
    crossover_num: int = Field(default=25, ge=0)
    iterations: int = Field(default=20, ge=1)
    mutation_probability: float = Field(default=0.1, gt=0, le=1)
    moves: Literal["id", "stage"] = "id"
    fill: bool = True
    batches: int = Field(default=20, ge=1)
    racing: bool = False
    precision: Precision = "auto"
    channels_last: bool = True
    memory_limit: float = Field(default=4e9, ge=1e6, allow_inf_nan=False)

    @property
    def needs_baseline(self) -> bool:
        return False

    @property
    def searches(self) -> bool:
        """Whether the structure is to be found."""
        return self.gene is None and self.candidate is None

    @property
    def needs_validation(self) -> bool:
        return self.searches

    @property
    def uses_pruningnet(self) -> bool:
        """Whether weights have to be generated."""
        return self.searches or self.weights == "generated"

    @property
    def given_by(self) -> str:
        """The option that gives the structure, where nothing is searched."""
        return "method.candidate" if self.gene is None else "method.gene"

    @property
    def recipes(self) -> dict[str, TrainingOptions]:
        trains = self.uses_pruningnet and self.earlier is None
        return {"pruningnet": self.recipe} if trains else {}

    @property
    def recipe(self) -> TrainingOptions:
        """How the pruningnet is trained; each step is of another structure, so none captured."""
        recipe = self.pruningnet or TrainingOptions(
            epochs=32,
            lr=0.1,
            weight_decay=1e-4,
            schedule="multistep",
            milestones=(0.25, 0.5, 0.75),
            label_smoothing=0.1,
        )
        return recipe.model_copy(update={"capture": False})

    def problems(self, prune: PruneOptions) -> list[str]:
        why = "MetaPruning, whose widths are those of a gene"
        found = common_problems(prune, why, "gene")
        if self.gene is not None and self.candidate is not None:
            found.append("method.candidate: method.gene is given too; expected one of the two")
        if self.candidate is not None and self.earlier is None:
            found.append(
                "method.candidate: is one of an earlier search; expected method.earlier, the "
                "directory of its run"
            )
        if self.earlier is not None and self.pruningnet is not None:
            found.append(
                "method.pruningnet: that of method.earlier is trained; expected one of the two"
            )
        if self.structures == "rank" and self.recipes and self.recipe.batch_norm == "sync":
            found.append(
                "method.pruningnet.batch_norm: sync joins the statistics of ranks, whose channels "
                "differ with method.structures rank; expected rank"
            )
        return found + _recipe_problems(self.pruningnet)

    def check(self, graph: ChannelGraph, prune: PruneOptions, network: Network | None) -> str:
        table = table_of(network, graph)
        if self.earlier is not None:
            wanted = [PRUNINGNET] if self.uses_pruningnet else []
            for name in [*wanted, *([] if self.candidate is None else [TRIALS])]:
                if not (Path(self.earlier) / name).is_file():
                    raise FastpruneError(
                        f"method.earlier: there is no {name} in {self.earlier}; expected the "
                        "directory of a run of metapruning that has ended"
                    )
        if self.searches:
            algorithm_of(self, table, graph, prune.budget, 0)
        else:
            widths = table.widths(self.chosen(table))
            check_structure(graph, prune.budget, widths, self.given_by)
        ends = np.array([table.low, table.high], np.int64)
        return reach(graph, table.width_matrix(graph, ends))

    def chosen(self, table: GeneTable) -> tuple[int, ...]:
        """The gene that is given, by itself or by its number."""
        if self.gene is not None:
            try:
                return table.read(self.gene)
            except PlanError as error:
                raise PlanError(f"method.{error}") from None
        trials = TrialLog(Path(str(self.earlier)) / TRIALS, read_only=True).trials
        if self.candidate not in trials:
            raise PlanError(
                f"method.candidate: expected the number of one of the {len(trials)} candidates "
                f"in {self.earlier}/{TRIALS}, counted from 0, got {self.candidate}"
            )
        gene = trials[self.candidate].code
        try:
            table.check(gene)
        except PlanError as error:
            raise PlanError(
                f"method.candidate: {self.candidate} in {self.earlier}/{TRIALS} is of another "
                f"network than model.name; {error}"
            ) from None
        return gene


def table_of(network: Network | None, graph: ChannelGraph) -> GeneTable:
    """The genes of a network.

    Raises:
        PlanError: it has none.
    """
    if network is not None and network.gene_network is not None:
        raise PlanError(
            f"model.name: genes of {network.name} are of {network.gene_network}, which is wider; "
            f"expected {network.gene_network}"
        )
    if network is None or network.genes is None:
        raise PlanError(
            "model.name: nobody has said what a gene of this network is; expected resnet50, "
            "mobilenet_v1, mobilenet_v2_metapruning or a resnet*_cifar"
        )
    return network.genes(graph)


def algorithm_of(
    options: MetaPruningOptions,
    table: GeneTable,
    graph: ChannelGraph,
    budget: Limits,
    seed: int,
) -> Evolution:
    """The search, before its first candidate.

    Raises:
        FastpruneError: no gene meets the budget, or sizes of the search do not go together.
    """

    def width_matrix(genes: NDArray[np.int64]) -> NDArray[np.int64]:
        return table.width_matrix(graph, genes)

    space = structure_space(
        graph,
        budget,
        table.low,
        table.high,
        width_matrix,
        word="gene",
        # Without a budget everything would become the whole network.
        fill=options.fill and bool(budget),
    )
    try:
        return Evolution(
            space,
            seed,
            population=options.population,
            select_num=options.select_num,
            mutation_num=options.mutation_num,
            crossover_num=options.crossover_num,
            iterations=options.iterations,
            mutation_probability=options.mutation_probability,
            together=table.stages if options.moves == "stage" else None,
        )
    except ConfigError as error:
        raise ConfigError([f"method.{problem}" for problem in error.problems]) from None


def _recipe_problems(recipe: TrainingOptions | None) -> list[str]:
    if recipe is None:
        return []
    found = []
    if recipe.early_stop or recipe.keep == "best":
        field = "early_stop" if recipe.early_stop else "keep"
        found.append(
            f"method.pruningnet.{field}: looks at validation images, which fitness is measured "
            "on; expected none"
        )
    for field in ("compile", "capture"):
        if getattr(recipe, field) is True:
            found.append(
                f"method.pruningnet.{field}: every step is of another structure; expected false"
            )
    if recipe.distill:
        found.append("method.pruningnet.distill: the pruningnet is trained without a teacher")
    if recipe.recalibrate_batches:
        found.append(
            "method.pruningnet.recalibrate_batches: the pruningnet has no statistics; expected 0"
        )
    return found


def _numbers(given: Any) -> Any:
    if isinstance(given, str):
        return tuple(given.replace(",", " ").strip("[]() ").split()) or None
    return given
