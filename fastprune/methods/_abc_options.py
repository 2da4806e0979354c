"""Options of ABCPruner, and what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from fastprune.errors import FastpruneError, PlanError
from fastprune.graph import ChannelGraph
from fastprune.graph.units import FULL, parse_code
from fastprune.methods import MethodOptions, PruneOptions
from fastprune.methods._codes import check_code, reach_of, space_of, units_of
from fastprune.methods._inherit import check_rule
from fastprune.methods._structures import common_problems
from fastprune.models import Network
from fastprune.training import TrainingOptions

__all__ = ["AbcOptions"]


class AbcOptions(MethodOptions):
    """Options of ABCPruner; names of the search as the paper's code has them.

    Attributes:
        units: what one number of a code governs: the network family's own table (``family``), a
            channel group each (``group``), or all groups of feature maps of one size (``stage``);
            ``auto`` is ``family`` where the network has a table, and ``group`` elsewhere.
        code: tenths kept of every unit, 1 to 10; given, nothing is searched.
        inherit: which channels of the trained network a candidate begins with: ``first``,
            ``random`` (one order a run), ``l1`` or any other criterion.
        batches: training batches shown to a criterion that looks at data.
        search: ``bee_colony``, or ``random`` codes, the control, as many of them.
        order: ``batched`` asks for a whole phase's candidates at a time, from the sources as the
            phase began; ``published`` for one at a time, each from the sources as they are.
        food_number: sources F of the colony.
        max_cycle: rounds of employed bees, onlookers and scouts. Candidates are F + rounds · (2F
            + 1) at most.
        food_limit: a source that got no better so many times is drawn afresh.
        honeychange_num: numbers of a code that a neighbour has changed; all of them where there
            are fewer.
        max_preserve: highest tenth a code may have.
        evaluator: ``trained``, or ``shared``: candidates are not trained; batch norm statistics
            are taken anew and the inherited weights measured, steps that several candidates have
            in common once. Needs calfitness_epoch 0.
        recalibrate_batches: training batches of these statistics, 0 to keep those inherited; None
            is 10. For the shared evaluator alone.
        calfitness_epoch: epochs that each candidate is trained.
        fitness: recipe of that training; ``epochs`` is calfitness_epoch's to say. None: SGD at
            0.01, momentum 0.9, weight decay 5e-4, without a schedule.
        fitness_split: images that fitness is the accuracy on; the test images have to be asked for
            by name.
        fitness_metric: which accuracy.
        racing: give a candidate up after an epoch by which a paired test against its source says
            that it will not beat it.
        parallel: candidates at a time, each in a process of its own.
    """

    name: Literal["abc"] = "abc"
    units: Literal["auto", "family", "group", "stage"] = "auto"
    code: Annotated[tuple[int, ...] | None, BeforeValidator(lambda given: _code(given))] = None
    inherit: str = "l1"
    batches: int = Field(default=10, ge=1)
    search: Literal["bee_colony", "random"] = "bee_colony"
    order: Literal["batched", "published"] = "batched"
    food_number: int = Field(default=10, ge=2, le=100_000)
    max_cycle: int = Field(default=10, ge=1)
    food_limit: int = Field(default=5, ge=1)
    honeychange_num: int = Field(default=2, ge=1)
    max_preserve: int = Field(default=9, ge=1, le=FULL)
    evaluator: Literal["trained", "shared"] = "trained"
    recalibrate_batches: int | None = Field(default=None, ge=0)
    calfitness_epoch: int = Field(default=2, ge=0)
    fitness: TrainingOptions | None = None
    fitness_split: Literal["validation", "test"] = "validation"
    fitness_metric: Literal["top1", "top5"] = "top1"
    racing: bool = False
    parallel: int = Field(default=1, ge=1, le=1024)

    @field_validator("fitness", mode="before")
    @classmethod
    def _epochs(cls, given: Any, info: ValidationInfo) -> Any:
        # Filled in here, so that the options as they are written down say what is done and can
        # be read again.
        if isinstance(given, TrainingOptions):
            given = given.model_dump(exclude_unset=True)
        if isinstance(given, Mapping) and info.data.get("calfitness_epoch"):
            return {"epochs": info.data["calfitness_epoch"], **given}
        return given

    @property
    def recipes(self) -> dict[str, TrainingOptions]:
        trains = self.code is None and self.evaluator == "trained" and self.calfitness_epoch
        return {"fitness": self.recipe} if trains else {}

    @property
    def needs_validation(self) -> bool:
        return self.code is None and self.fitness_split == "validation"

    @property
    def recipe(self) -> TrainingOptions:
        """How each candidate is trained."""
        return self.fitness or TrainingOptions(
            epochs=self.calfitness_epoch, lr=0.01, schedule="constant"
        )

    def problems(self, prune: PruneOptions) -> list[str]:
        why = "ABCPruner, whose widths are tenths (method.code)"
        found = common_problems(prune, why, "code")
        try:
            check_rule(self.inherit)
        except FastpruneError as error:
            found.append(f"method.{error}")
        if self.evaluator == "shared":
            return found + _shared_problems(self)
        if self.calfitness_epoch < 1:
            found.append(
                "method.calfitness_epoch: evaluator trained trains candidates; expected 1 or "
                "more, or evaluator shared, got 0"
            )
        elif self.racing and self.calfitness_epoch < 2:
            found.append(
                "method.racing: gives up between epochs; expected calfitness_epoch from 2 on"
            )
        if self.recalibrate_batches is not None:
            found.append(
                "method.recalibrate_batches: for evaluator shared; with evaluator trained it is "
                "method.fitness.recalibrate_batches"
            )
        return found + _recipe_problems(self)

    def check(self, graph: ChannelGraph, prune: PruneOptions, network: Network | None) -> str:
        governed = units_of(self.units, graph, network)
        if self.code is None:
            space_of(self.max_preserve, graph, prune.budget, governed)
        else:
            check_code(self.code, graph, prune.budget, governed)
        return reach_of(self.max_preserve if self.code is None else FULL, graph, governed)


def _shared_problems(options: AbcOptions) -> list[str]:
    """What has no meaning where nothing is trained."""
    found = []
    if options.calfitness_epoch:
        found.append(
            f"method.evaluator: shared trains nothing; expected calfitness_epoch 0, got "
            f"{options.calfitness_epoch}"
        )
    if options.fitness is not None:
        found.append("method.fitness: a recipe of training, and evaluator shared trains nothing")
    if options.racing:
        found.append(
            "method.racing: stops trainings, and evaluator shared trains nothing; expected false"
        )
    if options.parallel > 1:
        found.append(
            "method.parallel: evaluator shared measures all candidates of a phase in one process; "
            f"expected 1, got {options.parallel}"
        )
    return found


def _recipe_problems(options: AbcOptions) -> list[str]:
    recipe, found = options.fitness, []
    if recipe is None:
        return []
    if recipe.epochs != options.calfitness_epoch:
        found.append(
            f"method.fitness.epochs: got {recipe.epochs}, but method.calfitness_epoch is "
            f"{options.calfitness_epoch}; expected one of the two"
        )
    if recipe.early_stop or recipe.keep == "best":
        field = "early_stop" if recipe.early_stop else "keep"
        found.append(
            f"method.fitness.{field}: looks at validation images, which fitness is measured on; "
            "expected none"
        )
    if recipe.compile:
        found.append(
            "method.fitness.compile: every candidate is another network and would be compiled "
            "anew; expected false"
        )
    if recipe.distill:
        found.append("method.fitness.distill: candidates are trained without a teacher")
    return found


def _code(given: Any) -> Any:
    if given is None:
        return None
    try:
        return parse_code(given)
    except PlanError as error:
        raise ValueError(str(error).removeprefix("code: ")) from None
