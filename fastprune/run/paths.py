"""Names of the files of a run directory; no other code knows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastprune.errors import ConfigError
from fastprune.files import TEMPORARY, digest_of

__all__ = ["RunPaths", "check_run_directory", "is_run_directory", "make_folder"]

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOCK = "lock"
IMAGES = "images.json"
GRAPH = "graph.json"
BASELINE = "baseline.safetensors"
UNPRUNED = "unpruned.safetensors"
PLAN = "plan.json"
INHERITED = "inherited.safetensors"
START = "finetune_start.safetensors"
PRUNED = "pruned"
REPORT = "report.json"
PAGE = "report.html"
CLASSES = "classes.csv"
TRIALS = "trials.jsonl"
STATES = "states.jsonl"
REWIND = "rewind.safetensors"
PRUNINGNET = "pruningnet.safetensors"
CHANNELS_PLOT = "channels.png"
SEARCH_PLOT = "search.png"
TRAINING_PLOT = "training.png"
STATES_PLOT = "states.png"
STATE_CHANNELS_PLOT = "state_channels.png"
LATENCY_TABLE = "latency_table.json"
LATENCY = "latency.json"
LATENCY_CSV = "latency.csv"
PENALTY_PLOT = "penalty.png"
FUSION = "fusion.json"
FUSION_HEAD = "head"
FUSION_WORK = "work"
EXPORTED = "exported"
INFERENCE = "inference.csv"
GROUPING = "grouping.json"
GROUPS = "groups.csv"
SIMILARITY = "similarity.npy"
SIMILARITY_PLOT = "similarity.png"
DENDROGRAM = "dendrogram.png"
DEVICES_PLOT = "devices.png"

FILES = (
    CONFIG,
    ENVIRONMENT,
    IMAGES,
    GRAPH,
    BASELINE,
    UNPRUNED,
    PLAN,
    INHERITED,
    START,
    f"{PRUNED}.safetensors",
    f"{PRUNED}.json",
    REPORT,
    PAGE,
    CLASSES,
    TRIALS,
    STATES,
    REWIND,
    PRUNINGNET,
    CHANNELS_PLOT,
    SEARCH_PLOT,
    TRAINING_PLOT,
    STATES_PLOT,
    STATE_CHANNELS_PLOT,
    PENALTY_PLOT,
    GROUPING,
    GROUPS,
    SIMILARITY,
    SIMILARITY_PLOT,
    DENDROGRAM,
    DEVICES_PLOT,
    LATENCY_TABLE,
    LATENCY,
    LATENCY_CSV,
    LOCK,
)
RECORDS = "stages"
WORK = "work"
STATE_WEIGHTS = "states"
EXPERTS = "experts"
FUSED = "fused"
FOLDERS = (RECORDS, WORK, STATE_WEIGHTS, EXPERTS, FUSED, EXPORTED)

_LONGEST = 100
"""Characters of a folder's name; file systems take 255."""


def is_run_directory(path: Path) -> bool:
    """Whether a run was started in this folder."""
    return (path / CONFIG).is_file()


def check_run_directory(path: Path) -> None:
    """Raises ConfigError if no run was started in this folder."""
    if not path.exists():
        raise ConfigError(f"{path}: there is no such folder; expected a run directory")
    if not path.is_dir():
        raise ConfigError(f"{path}: is a file; expected a run directory")
    if not is_run_directory(path):
        raise ConfigError(f"{path}: not a run directory: it holds no {CONFIG}")


def make_folder(path: Path) -> None:
    """Makes a folder for results, before any work is done for them.

    Raises:
        ConfigError: it cannot be, or nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Whether a disk can be written to is known once it was.
        probe = path / f"{TEMPORARY}{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot write there: {error.strerror}") from None


class RunPaths:
    """Where the files of a run are; it need not be open, and they need not be there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def baseline(self) -> Path:
        """Weights of the baseline network."""
        return self.path / BASELINE

    @property
    def unpruned(self) -> Path:
        """Weights the plan is applied to, where the method trained others than the baseline's."""
        return self.path / UNPRUNED

    @property
    def graph(self) -> Path:
        """Channel groups of the network, for people to read."""
        return self.path / GRAPH

    @property
    def plan(self) -> Path:
        """The pruning plan."""
        return self.path / PLAN

    @property
    def inherited(self) -> Path:
        """Weights of the pruned network, where the method trained it."""
        return self.path / INHERITED

    @property
    def start(self) -> Path:
        """Weights fine-tuning starts from."""
        return self.path / START

    @property
    def pruned(self) -> Path:
        """The product, as `fastprune.load` takes it: stem of a ``.safetensors`` and ``.json``."""
        return self.path / PRUNED

    @property
    def product(self) -> tuple[Path, Path]:
        """The two files of the product."""
        return self.path / f"{PRUNED}.safetensors", self.path / f"{PRUNED}.json"

    @property
    def report(self) -> Path:
        """The report, as JSON."""
        return self.path / REPORT

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / ENVIRONMENT

    @property
    def page(self) -> Path:
        """The report, as HTML for people."""
        return self.path / PAGE

    @property
    def classes(self) -> Path:
        """Accuracy of every class, where the pruned network is for some of them."""
        return self.path / CLASSES

    @property
    def trials(self) -> Path:
        """The candidates of a search, where the method was one."""
        return self.path / TRIALS

    @property
    def channels_plot(self) -> Path:
        """Channels kept in every group."""
        return self.path / CHANNELS_PLOT

    @property
    def search_plot(self) -> Path:
        """Fitness of a search's candidates."""
        return self.path / SEARCH_PLOT

    @property
    def states(self) -> Path:
        """The states of a lottery ticket, where the method looked for one."""
        return self.path / STATES

    @property
    def training_plot(self) -> Path:
        """Loss, accuracy and learning rate over the epochs of every training."""
        return self.path / TRAINING_PLOT

    @property
    def states_plot(self) -> Path:
        """Remaining weights, channels and accuracy over states."""
        return self.path / STATES_PLOT

    @property
    def state_channels_plot(self) -> Path:
        """Channels kept in every group at several states."""
        return self.path / STATE_CHANNELS_PLOT

    @property
    def penalty_plot(self) -> Path:
        """Strength of the growing penalty over states."""
        return self.path / PENALTY_PLOT

    @property
    def grouping(self) -> Path:
        """Which classes belong together, for every number of devices."""
        return self.path / GROUPING

    @property
    def groups(self) -> Path:
        """The same as a table, a row for each device."""
        return self.path / GROUPS

    @property
    def similarity(self) -> Path:
        """How alike any two classes are, as numpy saves arrays."""
        return self.path / SIMILARITY

    @property
    def similarity_plot(self) -> Path:
        """The same as a heat map."""
        return self.path / SIMILARITY_PLOT

    @property
    def dendrogram(self) -> Path:
        """In which order classes were merged, and at which distances."""
        return self.path / DENDROGRAM

    @property
    def devices_plot(self) -> Path:
        """Accuracy of the fused network, and its latency, over the number of devices."""
        return self.path / DEVICES_PLOT

    @property
    def experts(self) -> Path:
        """Folder of the runs of an ensemble's networks."""
        return self.path / EXPERTS

    def expert(self, classes: Sequence[int]) -> Path:
        """The run of the network for some classes."""
        name = "-".join(map(str, classes))
        if len(name) > _LONGEST:
            name = f"{classes[0]}-and-{len(classes) - 1}-more-{digest_of(list(classes))[:12]}"
        return self.experts / name

    @property
    def fused(self) -> Path:
        """Folder of the fused networks."""
        return self.path / FUSED

    def fusion(self, devices: int) -> Path:
        """The network that is fused of so many experts: a folder."""
        return self.fused / str(devices)

    @property
    def latency_table(self) -> Path:
        """Times of layers and networks that a budget in latency was solved with."""
        return self.path / LATENCY_TABLE

    @property
    def latency(self) -> Path:
        """What `fastprune latency` measured."""
        return self.path / LATENCY

    @property
    def latency_csv(self) -> Path:
        """The same as a table, a row a network, mode, batch size and number of threads."""
        return self.path / LATENCY_CSV

    @property
    def of_methods(self) -> tuple[Path, ...]:
        """Files that some methods make and others do not, and what is drawn of them."""
        plots = (self.search_plot, self.states_plot, self.state_channels_plot, self.penalty_plot)
        return (self.trials, self.states, self.latency_table, *plots)

    def record_file(self, stage: str) -> Path:
        """What a stage left, once it is finished."""
        return self.path / RECORDS / f"{stage}.json"

    def work_folder(self, stage: str) -> Path:
        """Where a stage keeps its checkpoints."""
        return self.path / WORK / stage
