"""The options of training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, model_validator

from fastprune.options import Options, expecting

__all__ = [
    "Capture",
    "DistillOptions",
    "EarlyStopOptions",
    "FocusOptions",
    "Precision",
    "TrainingOptions",
]

Precision = Literal["auto", "fp32", "bf16", "fp16"]

Capture = Annotated[StrictBool | Literal["auto"], expecting("true, false or auto")]
"""Whether work becomes a CUDA graph; auto where it can, and where batches are small."""

Milestone = Annotated[
    Annotated[StrictInt, Field(ge=1)]
    | Annotated[StrictFloat, Field(gt=0, lt=1, allow_inf_nan=False)],
    expecting("a count of epochs, or a fraction between 0 and 1"),
]


class _Options(Options):
    model_config = ConfigDict(allow_inf_nan=False)


class DistillOptions(_Options):
    """Learning from the unpruned network: (1 - alpha) · CE + alpha · T² · KL."""

    temperature: float = Field(
        default=4.0, gt=0, le=1e6, description="T, which both networks' logits are divided by."
    )
    alpha: float = Field(
        default=0.5, ge=0, le=1, description="Share of the unpruned network in the loss."
    )


class EarlyStopOptions(_Options):
    """Ending training when validation gets no better."""

    patience: int = Field(default=10, ge=1, description="Epochs without a gain before the end.")
    metric: Literal["top1", "loss"] = Field(default="top1", description="What is to get better.")
    min_delta: float = Field(
        default=0.0, ge=0, description="A gain has to be larger than this (percent for top1)."
    )


class FocusOptions(_Options):
    """Training for some of the classes; the others stay in the task.

    What ``early_stop`` (top1) and ``keep: best`` look at is then the mean of these classes'
    accuracies.
    """

    classes: tuple[Annotated[StrictInt, Field(ge=0)], ...] = Field(
        min_length=1, description="Their labels."
    )
    sample_ratio: float = Field(
        default=9.0,
        gt=0,
        description="How many times as often an image of theirs is drawn, with repetition, as one "
        "of another class.",
    )
    weight: float = Field(
        default=5.0, gt=0, description="Weight of their images in the loss; the others' is 1."
    )

    @model_validator(mode="after")
    def _different(self) -> FocusOptions:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected different labels, got {list(self.classes)}")
        return self


class TrainingOptions(_Options):
    """How a network is trained: SGD with momentum."""

    epochs: int = Field(default=30, ge=1, description="Passes over the training images.")
    lr: float = Field(default=0.01, gt=0, description="Highest learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum.")
    weight_decay: float = Field(default=5e-4, ge=0, description="L2 penalty on the weights.")
    no_decay_norm_bias: bool = Field(
        default=False, description="No weight decay on biases and on scales of norm layers."
    )
    schedule: Literal["multistep", "cosine", "linear", "constant"] = Field(
        default="cosine", description="How the learning rate falls."
    )
    milestones: tuple[Milestone, ...] = Field(
        default=(0.5, 0.75),
        description="Multistep: after how many epochs the learning rate falls; numbers below 1 "
        "are fractions of the training.",
    )
    gamma: float = Field(default=0.1, gt=0, le=1, description="Multistep: factor of each fall.")
    warmup_epochs: float = Field(
        default=0.0, ge=0, description="Epochs over which the learning rate rises from near 0."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of every label spread over all classes."
    )
    precision: Precision = Field(
        default="auto",
        description="Of the arithmetic: auto is bf16 on a GPU that has it and on a CPU with "
        "avx512_bf16 or amx_bf16, and fp32 elsewhere; fp16 needs a GPU.",
    )
    compile: bool = Field(
        default=False,
        description="Compile forward pass and loss by torch.compile, where that can be done: "
        "a minute or more at the start for a deep network.",
    )
    capture: Capture = Field(
        default="auto",
        description="Run a whole step as one CUDA graph: auto does for small batches on a GPU, "
        "where nothing speaks against it; true is an error where something does.",
    )
    channels_last: bool = Field(
        default=True, description="Images and weights in channels-last memory, which is faster."
    )
    clip_grad_norm: float | None = Field(
        default=None, gt=0, description="Longest gradient, over all weights together."
    )
    accumulate: int = Field(
        default=1, ge=1, description="Batches whose gradients are joined into one step."
    )
    scale_batch: bool = Field(
        default=False,
        description="With several ranks: each takes data.batch_size images a step, and the "
        "learning rate is multiplied by the number of ranks; otherwise they share these images.",
    )
    batch_norm: Literal["sync", "broadcast", "rank"] = Field(
        default="sync",
        description="With several ranks, batch norm's statistics: sync takes them over the "
        "images of all, as one process would; rank over each one's own, and keeps the running "
        "ones of the first; broadcast gives these to all at every step.",
    )
    distill: DistillOptions | None = Field(
        default=None, description="Learn from the unpruned network too."
    )
    early_stop: EarlyStopOptions | None = Field(
        default=None, description="End when validation gets no better."
    )
    focus: FocusOptions | None = Field(
        default=None, description="Draw and weigh the images of some classes more."
    )
    recalibrate_batches: int = Field(
        default=0,
        ge=0,
        description="Batches from which batch norm statistics are taken anew after training; 0 "
        "keeps the running ones.",
    )
    checkpoint_every: float = Field(
        default=300.0,
        ge=0,
        description="Seconds between checkpoints, in the middle of epochs too; an epoch's end is "
        "due after a thirtieth of it. 0 writes one after every step.",
    )
    keep: Literal["last", "best"] = Field(
        default="last",
        description="Weights of the result: of the last epoch, or of the best validation top1.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingOptions:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0")
        if self.compile and self.capture is True:
            raise ValueError("capture: true does not go with compile: true; choose one")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: got {self.warmup_epochs:g}, but there are {self.epochs} epochs"
            )
        return self
