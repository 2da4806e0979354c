"""What every search algorithm must hold to; for authors of new ones too."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fastprune.search import Candidate, RandomSearch, SearchAlgorithm, Space

__all__ = ["Make", "check_search", "digest"]

Make = Callable[[Space, int], SearchAlgorithm]
"""A search algorithm of a space and a seed."""

_SEED = 3

# The planted optimum: random search all but never comes so near in a thousand codes.
_DIMENSIONS, _NEAR, _SEEDS = 16, 0.85, 8

# Luck alone hardly saves a quarter on average over the seeds.
_FASTER = 0.75

# Files by path, since those of tests are seldom importable by name.
_ELSEWHERE = """
import importlib.util, sys

def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

checks, there, name = sys.argv[1:]
print(load(checks, "checks").digest(getattr(load(there, "there"), name)))
"""


def check_search(make: Make) -> None:
    """Runs a search algorithm to its end some thirty times, also in another Python.

    Checked are bounds and budget of all that is asked, numbers, rivals, asking again, any order
    of telling, refusals, the best, the end, exact resume after every ask and tell, the same
    candidates elsewhere, and that a planted optimum is found faster than by `RandomSearch` (which
    is let off that one).

    Args:
        make: a function or class at the top of a file, by which another Python finds it. The
            planted optimum has 16 dimensions and asks for a few hundred evaluations.

    Raises:
        AssertionError: one of these does not hold.
        ValueError: ``make`` is not at the top of a file.
    """
    for space in _spaces():
        _check_space(make, space)
    _hold(_digest_elsewhere(make) == digest(make), "another process asks for something else")
    if not isinstance(make(_spaces()[0], _SEED), RandomSearch):
        _check_optimum(make)


def _check_space(make: Make, space: Space) -> None:
    rng = np.random.default_rng(0)
    expected = _run(make(space, _SEED), space, lambda out: out[0])
    backwards = _run(make(space, _SEED), space, lambda out: out[-1])
    _hold(backwards == expected, "telling backwards changes what is asked")
    shuffled = _run(make(space, _SEED), space, lambda out: out[int(rng.integers(len(out)))])
    _hold(shuffled == expected, "the order of telling changes what is asked")
    resumed = _run(
        make(space, _SEED), space, lambda out: out[0], lambda search: _copy(make, space, search)
    )
    _hold(resumed == expected, "a search that was saved and loaded asks for something else")
    _check_refusals(make(space, _SEED))


def digest(make: Make) -> str:
    """A digest of all that the search asks for, in spaces with and without a budget."""
    asked = [
        c.to_dict()
        for space in _spaces()
        for c in _run(make(space, _SEED), space, lambda out: out[0])
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _spaces() -> list[Space]:
    return [
        Space((0, 1, 1, 3, -2, 2), (4, 10, 10, 3, 2, 31)),
        Space((1,) * 6, (10,) * 6, _at_most_24),
        Space((1,) * 6, (10,) * 6, _at_most_24, fill=True),
    ]


def _at_most_24(codes: NDArray[np.int64]) -> NDArray[np.bool_]:
    _hold(codes.ndim == 2 and codes.dtype == np.int64, "feasible: expected int64 codes [K, D]")
    return np.asarray(codes.sum(1) <= 24, np.bool_)


def _fitness(space: Space, code: Sequence[int]) -> float:
    """Negative and positive, with many ties."""
    planted = [(low + high) // 2 for low, high in zip(space.low, space.high, strict=True)]
    return 8.0 - sum(abs(k - p) for k, p in zip(code, planted, strict=True))


def _same(search: SearchAlgorithm) -> SearchAlgorithm:
    return search


def _run(
    search: SearchAlgorithm,
    space: Space,
    pick: Callable[[list[Candidate]], Candidate],
    swap: Callable[[SearchAlgorithm], SearchAlgorithm] = _same,
) -> list[Candidate]:
    """All that a search asks for, checked; ``pick`` says whom to tell next, and ``swap`` puts
    another in the search's place after every ask and every tell.
    """
    asked: list[Candidate] = []
    told: set[int] = set()
    left: list[Candidate] = []
    best: tuple[Candidate, float] | None = None
    most = search.evaluations
    while out := search.ask():
        _hold(search.ask() == out, "asking again gives something else")
        _hold(not search.done, "done, and still asking")
        _hold(out[: len(left)] == left, "what was not told is not asked again first")
        for c in out[len(left) :]:
            _hold(c.number == len(asked), f"number: expected {len(asked)}, got {c}")
            _check_candidate(c, space, told)
            asked.append(c)
        _hold(len(asked) <= most, f"more than the {most} evaluations it speaks of")
        search = swap(search)
        picked = pick(out)
        fitness = _fitness(space, picked.code)
        search.tell(picked.number, fitness)
        search = swap(search)
        told.add(picked.number)
        left = [c for c in out if c != picked]
        if best is None or (fitness, -picked.number) > (best[1], -best[0].number):
            best = (picked, fitness)
        _hold(search.best == best, f"best: expected {best}, got {search.best}")
    _hold(search.done, "nothing asked, and not done")
    _hold(not left, "the end came before all was told")
    return asked


def _check_candidate(c: Candidate, space: Space, told: set[int]) -> None:
    _hold(
        len(c.code) == space.dimensions
        and all(type(k) is int for k in c.code)
        and all(
            low <= k <= high for low, k, high in zip(space.low, c.code, space.high, strict=True)
        ),
        f"out of bounds: {c}",
    )
    _hold(bool(space.fits(np.array([c.code], np.int64))[0]), f"over budget: {c}")
    _hold(c.rival is None or c.rival in told, f"a rival that was never told: {c}")


def _copy(make: Make, space: Space, search: SearchAlgorithm) -> SearchAlgorithm:
    """The search as another one, made of another seed, loads it from text."""
    state = search.state_dict()
    text = json.dumps(state, allow_nan=False)
    _hold(json.loads(text) == state, "the state is not plain JSON data")
    other = make(space, _SEED + 1)
    other.load_state_dict(json.loads(text))
    _hold(other.state_dict() == state, "the state is another once loaded")
    _hold(other.ask() == search.ask(), "a loaded search asks for something else")
    out = search.ask()
    if out:
        search.tell(out[-1].number, 0.0)
        _hold(json.dumps(state) == text, "a state changes when the search goes on")
    return other


def _check_refusals(search: SearchAlgorithm) -> None:
    out = search.ask()
    for number, fitness in [(-1, 0.0), (out[-1].number + 1, 0.0)]:
        _check_refused(search, number, fitness)
    for fitness in (math.nan, math.inf, -math.inf):
        _check_refused(search, out[0].number, fitness)
    _hold(search.ask() == out, "a telling that was refused leaves a trace")
    search.tell(out[0].number, 0.0)
    _check_refused(search, out[0].number, 1.0)


def _check_refused(search: SearchAlgorithm, number: int, fitness: float) -> None:
    try:
        search.tell(number, fitness)
    except ValueError:
        return
    raise AssertionError(f"tell({number}, {fitness}) was not refused")


def _digest_elsewhere(make: Make) -> str:
    name, there = getattr(make, "__qualname__", "<none>"), inspect.getsourcefile(make)
    if not name.isidentifier() or there is None:
        raise ValueError(f"make: expected a function or class at the top of a file, got {name}")
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, __file__, there, name], capture_output=True, text=True
    )
    _hold(done.returncode == 0, f"another process failed:\n{done.stderr}")
    return done.stdout.strip()


def _check_optimum(make: Make) -> None:
    """Mean evaluations, over seeds, until a code is near a planted one in every dimension."""
    space = Space((1,) * _DIMENSIONS, (10,) * _DIMENSIONS)
    needed, needed_by_chance = [], []
    for seed in range(_SEEDS):
        # Other streams than the searches', whose first code would else be the optimum.
        planted = np.random.default_rng((seed, 1)).integers(1, 11, _DIMENSIONS).tolist()
        search = make(space, seed)
        chance = RandomSearch(space, seed, evaluations=search.evaluations)
        needed.append(_until_near(search, planted))
        needed_by_chance.append(_until_near(chance, planted))
    got, by_chance = float(np.mean(needed)), float(np.mean(needed_by_chance))
    _hold(
        got <= _FASTER * by_chance,
        f"optimum: near it after {got:g} evaluations, by chance after {by_chance:g}",
    )


def _until_near(search: SearchAlgorithm, planted: list[int]) -> int:
    """Evaluations until the fitness, 1 less the mean distance over the range, is near 1; all of
    them where it never is.
    """
    while out := search.ask():
        for c in out:
            far = sum(abs(k - p) for k, p in zip(c.code, planted, strict=True))
            fitness = 1 - far / (9 * len(planted))
            if fitness >= _NEAR:
                return c.number + 1
            search.tell(c.number, fitness)
    return search.evaluations


def _hold(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
