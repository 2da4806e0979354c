"""Structured lottery tickets: train, prune weights by magnitude, rewind, and again, to a network
that is really smaller.

Chen et al., *Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets*, ICML 2022
(refill); Bai et al., *Dual Lottery Ticket Hypothesis*, ICLR 2022, and Wang et al., *Neural Pruning
via Growing Regularization*, ICLR 2021 (the growing penalty).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from fastprune.artifact import restore
from fastprune.data import Placement
from fastprune.distributed import first
from fastprune.errors import FastpruneError
from fastprune.files import sha256_of
from fastprune.graph import apply_plan, mask_plan
from fastprune.methods import MethodContext, MethodResult, registry
from fastprune.methods._coordinates import gather_masks, scatter_state
from fastprune.methods._filter_scores import filter_scores
from fastprune.methods._lottery_files import BestEpoch, LotteryFiles
from fastprune.methods._lottery_options import LotteryOptions
from fastprune.methods._states import StateRecord, read_states, write_states
from fastprune.methods._tickets import Structure, Ticket, first_ticket, next_ticket
from fastprune.methods._weight_masks import Masks
from fastprune.nn import GrowingPenalty
from fastprune.training import EpochRecord, FitResult, checkpoint, evaluate, fit
from fastprune.training._run import steps_per_epoch

__all__ = ["LotteryOptions", "lottery"]

State = dict[str, Tensor]


@registry.register("lottery", options=LotteryOptions)
def lottery(context: MethodContext, options: LotteryOptions) -> MethodResult:
    """Train, prune and rewind, ``pruning_times`` times.

    A state that is done is on disk, and a training goes on from its own checkpoints, so an
    interrupted call goes on where it was.

    Raises:
        FastpruneError: the penalty depends on validation accuracy and there are no validation
            images, or would never grow; a training that fails.
    """
    if options.dynamic_target is not None and context.splits.validation is None:
        raise FastpruneError(
            "method.dynamic_target: there are no validation images; expected data.validation"
        )
    run = _Run(context, options, LotteryFiles(context.directory))
    if options.penalises and options.reg_update_interval >= run.steps:
        raise FastpruneError(
            f"method.reg_update_interval: got {options.reg_update_interval}, and a state has "
            f"{run.steps} steps: its penalty would never grow"
        )
    run.prepare()
    records = list(read_states(run.files.states)) if run.files.states.is_file() else []
    ticket = first_ticket(context.graph, options)
    for number in range(options.pruning_times + 1):
        if number > 0:
            ticket = run.ticket(number, ticket)
        if number == len(records):
            records.append(run.state(number, ticket))
            first(partial(write_states, run.files.states, records))
            context.progress.note(_line(records[-1], options))
    last, trained = records[-1], run.unpruned(0)
    return MethodResult(
        ticket.left.plan,
        trained,
        pruned_state=run.files.load(run.files.weights(last.state)),
        trained=trained,
        notes={
            "variant": options.variant,
            "start": options.start,
            "states": len(records),
            "prunable_weights": last.prunable_weights,
            "remaining_weights": last.remaining_weights,
            "remaining_share": round(last.remaining_weights / last.prunable_weights, 6),
            "rewind_sha256": sha256_of(run.files.rewind),
        },
        files=(run.files.states, run.files.rewind, run.files.networks),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What all states have in common."""

    context: MethodContext
    options: LotteryOptions
    files: LotteryFiles

    @property
    def steps(self) -> int:
        """Optimizer steps of a state."""
        recipe = self.options.train
        return recipe.epochs * steps_per_epoch(recipe, self.context.splits.train)

    def prepare(self) -> None:
        """Writes down the weights that states begin with, where they are known by now."""
        self.files.networks.mkdir(exist_ok=True)
        if self.files.saved(self.files.rewind):
            return
        if self.options.start == "pt":
            self.files.save(self.files.rewind, self.context.model)
        elif self.options.start == "lt" or self.options.rewind_epoch == 0:
            self.files.save(self.files.rewind, self.context.fresh(self.context.seed))

    def ticket(self, number: int, before: Ticket) -> Ticket:
        """What a state trains; it follows from how the one before ended."""
        file = self.files.ticket(number)
        if not file.is_file():
            # Written down: a criterion that looks at data may rank otherwise on a GPU.
            first(lambda: checkpoint.write(file, self._next(number, before).state_dict()))
        return Ticket.of(checkpoint.read(file))

    def _next(self, number: int, before: Ticket) -> Ticket:
        context, options, left = self.context, self.options, before.left
        trained = self.unpruned(number - 1, left)

        def scores(masks: Masks) -> Mapping[str, Tensor]:
            placement = Placement(context.device)
            batches = context.splits.train.epoch(number, placement=placement)
            return filter_scores(
                options.criterion,
                mask_plan(trained, context.graph, left.plan),
                context.graph,
                tuple(masks),
                masks=masks,
                batches=islice(batches, options.batches),
                seed=context.seed + number,
            )

        state = {name: tensor.cpu() for name, tensor in trained.state_dict().items()}
        return next_ticket(left, state, number, context.graph, options, scores)

    def unpruned(self, number: int, structure: Structure | None = None) -> nn.Module:
        """The whole network with the weights that a state ended with, zero where none stayed."""
        context = self.context
        state = self.files.load(self.files.weights(number))
        model = context.fresh(context.seed)
        if structure is not None:
            state = scatter_state(state, context.graph, structure.plan, model)
        return restore(model, state).to(context.device)

    def state(self, number: int, ticket: Ticket) -> StateRecord:
        """Trains a state, cuts what its penalty shrank, and writes the network down."""
        context = self.context
        net = self._begin(number, ticket)
        penalty = self._penalty(net, ticket)
        best = BestEpoch(self.files.best(number))
        result = self._train(number, net, penalty, best)
        left = ticket.left
        norm = None
        whole = self._in_whole(net, ticket.trained)
        if ticket.penalised:
            squares = [
                (whole[name][mask].double() ** 2).sum() for name, mask in ticket.penalised.items()
            ]
            norm = math.sqrt(float(torch.stack(squares).sum()))
        small = self._cut(whole, left)
        cut = self._accuracy(small, "validation") if ticket.penalised else None
        self.files.save(self.files.weights(number), small)
        cost, full = context.graph.cost(left.plan), context.graph.cost()
        return StateRecord(
            state=number,
            remaining_weights=left.remaining,
            prunable_weights=sum(mask.numel() for mask in left.masks.values()),
            channels=cost.channels,
            full_channels=full.channels,
            macs=cost.macs,
            params=cost.params,
            widths=left.plan.widths(),
            validation_top1=result.validation.top1 if result.validation else None,
            cut_top1=cut,
            best_validation_top1=best.top1,
            test_top1=self._accuracy(small, "test"),
            penalised_norm=norm,
            seconds=round(sum(epoch.seconds for epoch in result.history), 3),
            strengths=penalty.strengths if penalty and ticket.penalised else (),
        )

    def _begin(self, number: int, ticket: Ticket) -> nn.Module:
        """The network that a state trains, with the weights it begins with."""
        context, trained = self.context, ticket.trained
        model = context.fresh(context.seed)
        # State 0 writes them itself for rewind_lt, perhaps before a kill and its first checkpoint.
        if number > 0 or self.options.start == "pt":
            restore(model, self.files.load(self.files.rewind))
        if number == 0:
            return model
        return self._cut(model.state_dict(), trained, masked=not self.options.prune_each_state)

    def _cut(self, whole: State, structure: Structure, *, masked: bool = False) -> nn.Module:
        """The network that stays, or the whole one with all else at zero."""
        context = self.context
        model = restore(context.fresh(context.seed), whole).to(context.device)
        masks = structure.masks
        if masked:
            net = mask_plan(model, context.graph, structure.plan)
        else:
            net = apply_plan(model, context.graph, structure.plan, allow_unchanged=True)
            masks = gather_masks(masks, context.graph, structure.plan)
        weights = dict(net.named_parameters())
        with torch.no_grad():
            for name, mask in masks.items():
                weights[name].mul_(mask.to(weights[name].device))
        return net

    def _in_whole(self, net: nn.Module, structure: Structure) -> State:
        """A trained network's weights in the unpruned network's coordinates, on the CPU."""
        state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
        if not self.options.prune_each_state:
            return state
        model = self.context.fresh(self.context.seed)
        return scatter_state(state, self.context.graph, structure.plan, model)

    def _penalty(self, net: nn.Module, ticket: Ticket) -> GrowingPenalty | None:
        options, structure = self.options, ticket.trained
        masks, penalised = structure.masks, {**ticket.penalised, **ticket.beside}
        if not penalised and all(bool(mask.all()) for mask in masks.values()):
            return None
        if options.prune_each_state:
            graph = self.context.graph
            masks = gather_masks(masks, graph, structure.plan)
            penalised = gather_masks(penalised, graph, structure.plan)
        return GrowingPenalty(
            dict(net.named_parameters()),
            penalised=penalised,
            kept=masks,
            schedule=options.schedule,
            granularity=options.reg_granularity_prune,
            exponents=options.exponents,
            update_interval=options.reg_update_interval,
            limit=options.reg_limit,
            steps=self.steps,
            target=options.dynamic_target,
        )

    def _train(
        self, number: int, net: nn.Module, penalty: GrowingPenalty | None, best: BestEpoch
    ) -> FitResult:
        context, options = self.context, self.options

        def after_epoch(record: EpochRecord) -> None:
            if penalty is not None:
                penalty.after_epoch(record)
            best.see(record, net)
            rewinds = options.start == "rewind_lt" and number == 0
            if rewinds and record.epoch == options.rewind_epoch:
                self.files.save(self.files.rewind, net)

        teacher, recipe = self._teacher(number), options.train
        if teacher is None:
            recipe = recipe.model_copy(update={"distill": None})
        return fit(
            net,
            context.splits,
            recipe,
            directory=self.files.training(number),
            seed=context.seed + number,
            device=context.device,
            teacher=teacher,
            after_backward=penalty,
            after_epoch=after_epoch,
            progress=context.progress,
            name=f"state {number} of {options.pruning_times}",
            field="method.train",
        )

    def _teacher(self, number: int) -> nn.Module | None:
        """The unpruned network, trained: the baseline's, or state 0's."""
        if self.options.train.distill is None:
            return None
        if self.options.start == "pt":
            return self.context.model
        return self.unpruned(0) if number else None

    def _accuracy(self, net: nn.Module, part: str) -> float | None:
        pipeline = self.context.splits.parts.get(part)
        if pipeline is None:
            return None
        return evaluate(
            net,
            pipeline,
            device=self.context.device,
            # As in training, whose validation this is compared with; test images as in reports.
            precision=self.options.train.precision if part == "validation" else "fp32",
            channels_last=True,
            progress=self.context.progress,
            name=f"{part} images",
        ).top1


def _line(record: StateRecord, options: LotteryOptions) -> str:
    share = record.remaining_weights / record.prunable_weights
    validation = record.validation_top1
    measured = "" if validation is None else f", validation {validation:.2f} %"
    cut = "" if record.cut_top1 is None else f", {record.cut_top1:.2f} % when cut"
    return (
        f"state {record.state} of {options.pruning_times}: {share:.3%} of the weights, "
        f"{record.channels:,} of {record.full_channels:,} channels{measured}{cut}"
    )
