"""How a run went: its search, the states of its ticket, its trainings, its classes."""

from __future__ import annotations

from functools import partial

from fastprune.methods._scales import QUANTILES
from fastprune.run.html import figures
from fastprune.run.html.blocks import Block, Column, Lines, Picture, Section, Shown, Table
from fastprune.run.html.content import RunContent
from fastprune.run.html.reached import amount

__all__ = ["classes", "search", "sparsity", "ticket", "training"]


def search(run: RunContent) -> Section | None:
    """Fitness of the candidates and the accuracy-MACs front; None where nothing was searched."""
    rows = run.trials
    if not rows:
        return None
    best = max(rows, key=lambda row: (row["fitness"], -row["number"]))
    new = [row for row in rows if row["repeats"] is None]
    said = (
        f"{len(rows)} candidates, {len(new)} of them evaluated, "
        f"{sum(row['stopped'] for row in new)} given up before their end, "
        f"{sum(row['diverged'] for row in new)} diverged. The best is number {best['number']}, "
        f"with fitness {best['fitness']:.2f} % and {amount(best['cost']['macs'])} MACs."
    )
    blocks: list[Block] = [
        Lines((said,)),
        Picture(
            "fitness",
            "Fitness over the candidates, and the best so far",
            f"Points of {len(rows)} candidates from number 0 to {rows[-1]['number']}; the best so "
            f"far rises from {rows[0]['fitness']:.2f} to {best['fitness']:.2f} %.",
            partial(figures.fitness, rows),
        ),
    ]
    if run.front:
        low, high = run.front[0], run.front[-1]
        blocks += [
            Picture(
                "front",
                "Fitness against MACs, and the front",
                f"Points of {len(rows)} candidates; {len(run.front)} of them are on the front, "
                f"from {low['fitness']:.2f} % at {amount(low['macs'])} MACs to "
                f"{high['fitness']:.2f} % at {amount(high['macs'])}.",
                partial(figures.front_of, rows, run.front),
            ),
            _front(run),
        ]
    return Section("Search", tuple(blocks))


def ticket(run: RunContent) -> Section | None:
    """The states of a lottery ticket; None where there is none."""
    states = run.states
    if not states:
        return None
    last = states[-1]
    left = last.remaining_weights / last.prunable_weights
    count = f"{len(states)} states" if len(states) > 1 else "one state"
    blocks: list[Block] = [
        Picture(
            "states",
            "Weights and channels left in every state",
            f"Two curves over {count}; the last has {left:.2%} of the prunable weights and "
            f"{last.channels} of {last.full_channels} channels.",
            partial(figures.state_left, states),
        ),
        Picture(
            "state_accuracy",
            "Accuracy of every state",
            f"Top-1 accuracies over {count}; table “{_STATES}” has them.",
            partial(figures.state_accuracy, states),
        ),
    ]
    if run.groups:
        blocks.append(
            Picture(
                "state_channels",
                "Channels that every state keeps, by group",
                f"A cell for each of {len(run.groups)} groups and {count}, lighter where more of "
                "the channels are kept.",
                partial(figures.state_channels, run.groups, states),
            )
        )
    strengths = [strength for state in states for _, strength in state.strengths]
    if strengths:
        blocks.append(
            Picture(
                "penalty",
                "Strength of the growing penalty in the course of every state",
                f"Steps that grow to {max(strengths):g} and begin anew in every state.",
                partial(figures.penalty, states),
            )
        )
    return Section("Lottery ticket", (*blocks, _states(run)))


def sparsity(run: RunContent) -> Section | None:
    """Batch norm scales and their penalty over sparse training; None where there was none."""
    scales = run.scales
    if not scales:
        return None
    first, last = scales[0], scales[-1]
    middle = QUANTILES.index(0.5)
    columns = (
        Column("epoch", "epoch", "d"),
        Column("penalty", "penalty s·Σ|γ|", ".5g"),
        *(Column(f"quantile_{q:g}", f"{q:.0%} of |γ| are below", ".3g") for q in QUANTILES[1:-1]),
        Column("largest", "largest |γ|", ".3g"),
    )
    rows = tuple((line.epoch, line.penalty, *line.quantiles[1:]) for line in scales)
    return Section(
        "Sparsity",
        (
            Picture(
                "scales",
                "Batch norm scales |γ| over the epochs of sparse training",
                f"A line for the median of |γ|, from {first.quantiles[middle]:.3g} to "
                f"{last.quantiles[middle]:.3g}, in bands of half and of four fifths of all.",
                partial(figures.scales, scales, run.notes.get("threshold")),
            ),
            Picture(
                "penalty",
                "Sparsity penalty over the epochs of sparse training",
                f"A line from {first.penalty:.3g} to {last.penalty:.3g}.",
                partial(figures.scale_penalty, scales),
            ),
            Table("scales", "Scales at the end of every epoch", columns, rows, folded=True),
        ),
    )


def training(run: RunContent) -> Section | None:
    """Curves of all trainings; None before the first epoch."""
    if not run.trainings:
        return None
    epochs = sum(map(len, run.trainings.values()))
    rows = []
    for name, history in run.trainings.items():
        last = history[-1]
        known = [e.validation_top1 for e in history if e.validation_top1 is not None]
        rows.append(
            (
                name,
                len(history),
                last.train_loss,
                last.train_top1,
                last.validation_top1,
                max(known, default=None),
            )
        )
    columns = (
        Column("training", "training"),
        Column("epochs", "epochs", "d"),
        Column("train_loss", "training loss", ".4f"),
        Column("train_top1", "training top-1, %", ".2f"),
        Column("validation_top1", "validation top-1, %", ".2f"),
        Column("best_validation_top1", "best epoch, %", ".2f"),
    )
    caption = "The last epoch of every training, and its best validation accuracy"
    first, final = next(iter(run.trainings.values()))[0], rows[-1]
    return Section(
        "Training",
        (
            Picture(
                "training",
                "Loss, accuracy and learning rate over the epochs of all trainings in turn",
                f"Curves over {epochs} epochs of {len(rows)} trainings: {', '.join(run.trainings)}"
                f"; training loss goes from {first.train_loss:.3g} to {final[2]:.3g}.",
                partial(figures.trainings_of, run.trainings),
            ),
            Table("trainings", caption, columns, tuple(rows), folded=len(rows) > 12),
        ),
    )


def classes(run: RunContent) -> Section | None:
    """Accuracy of every class, where the pruned network is for some of them."""
    if not run.classes:
        return None

    def percent(text: str) -> float | None:
        return float(text) if text else None

    rows = tuple(
        (
            row["label"],
            row["class"],
            {"1": "yes", "0": "no"}.get(row["in_focus"], ""),
            percent(row["unpruned"]),
            percent(row["pruned"]),
        )
        for row in run.classes
    )
    columns = (
        Column("label", "label"),
        Column("class", "class"),
        Column("in_focus", "in focus"),
        Column("unpruned", "unpruned top-1, %", ".2f"),
        Column("pruned", "pruned top-1, %", ".2f"),
    )
    caption = "Test accuracy of every class"
    return Section("Classes", (Table("classes", caption, columns, rows),))


def _front(run: RunContent) -> Table:
    full = run.cost[0].get("macs")
    phases = {row["number"]: row["phase"] for row in run.trials}
    rows = tuple(
        (
            row["number"],
            phases[row["number"]],
            row["fitness"],
            Shown(row["macs"], amount(row["macs"])),
            row["macs"] / full if full else None,
            Shown(row["params"], amount(row["params"])),
            " ".join(map(str, row["code"])),
        )
        for row in run.front
    )
    columns = (
        Column("number", "candidate", "d"),
        Column("phase", "phase"),
        Column("fitness", "fitness, %", ".2f"),
        Column("macs", "MACs", ","),
        Column("macs_share", "of the unpruned", ".1%"),
        Column("params", "parameters", ","),
        Column("code", "code"),
    )
    return Table("front", "Candidates that no other equals with fewer MACs", columns, rows)


_STATES = "The states"


def _states(run: RunContent) -> Table:
    rows = tuple(
        (
            state.state,
            state.remaining_weights / state.prunable_weights,
            state.channels / state.full_channels,
            Shown(state.macs, amount(state.macs)),
            Shown(state.params, amount(state.params)),
            state.validation_top1,
            state.best_validation_top1,
            state.cut_top1,
            state.test_top1,
            state.penalised_norm,
            state.seconds,
        )
        for state in run.states
    )
    columns = (
        Column("state", "state", "d"),
        Column("weights", "weights left", ".2%"),
        Column("channels", "channels left", ".1%"),
        Column("macs", "MACs", ","),
        Column("params", "parameters", ","),
        Column("validation_top1", "validation top-1, %", ".2f"),
        Column("best_validation_top1", "best epoch, %", ".2f"),
        Column("cut_top1", "penalised weights cut, %", ".2f"),
        Column("test_top1", "test top-1, %", ".2f"),
        Column("penalised_norm", "norm of the penalised", ".4g"),
        Column("seconds", "seconds", ",.1f"),
    )
    # Columns of which no state has anything say nothing.
    used = [0, *(i for i in range(1, len(columns)) if any(row[i] is not None for row in rows))]
    return Table(
        "states",
        _STATES,
        tuple(columns[i] for i in used),
        tuple(tuple(row[i] for i in used) for row in rows),
    )
