"""Probing: can a label be read off activations by a linear map, where, and better than chance and than tokens alone?

Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes". A probe that does well says
that the label is there, not that the model uses it; and one that does well on any labels says nothing (Hewitt and Liang
2019, "Designing and interpreting probes with control tasks"). So each is judged on groups that it has not seen, beside
probes of shuffled labels, and beside probes of random features: as many numbers, drawn once for each token of the
vocabulary, which know what the token is and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from labkit.activations.sites import Site
from labkit.collected.collection import Collection
from labkit.probing import fit
from labkit.probing.result import Probe
from labkit.results.job import finish
from labkit.results.recipe import versions
from labkit.text.whole_numbers import whole

Labels = str | Sequence[Any] | np.ndarray
"""One per text or per row of a collection, or the name of a column of its `rows`."""
PENALTY = 0.01  # C, by default: about as accurate as weaker penalties, and directions are less noisy


def probe(
    collected: Collection,
    labels: Labels,
    *,
    site: str | None = None,
    groups: Labels | None = None,
    layers: Sequence[int] | None = None,
    by_position: bool | None = None,
    C: float = PENALTY,  # as in scikit-learn
    folds: int = 5,
    controls: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Probe:
    """Linear probes of a label, layer by layer.

    Args:
        collected: activations, from `lk.collect`.
        labels: what to read off: one per text, one per row, or the name of a column of `collected.rows`. Floats of more
            than two values are numbers, for a ridge regression; anything else is a class, for a logistic regression.
        site: the kind of site, where several were collected; or one of one layer, such as `z.5.3`.
        groups: what is never on both sides of a split, given like labels: templates, topics, authors. By default each
            text is a group; texts that are the same are one.
        layers: which; by default all that were collected.
        by_position: a probe for each of the positions that were collected from every text; by default if they were
            given as a list of several. Otherwise the rows of all positions are together.
        C: the inverse of the strength of the L2 penalty, on standardised activations.
        folds: of the cross-validation.
        controls: how many times labels are shuffled, and random features drawn.
        seed: of folds and controls.
        progress: show a progress bar.

    Returns:
        A `Probe`: scores by layer and position with bootstrap intervals over groups, controls, and directions. After an
        interrupt, or as `probe` on an error, it has the layers done until then.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError: the first argument is no collection.
        ValueError: before anything is fitted: too few or wrong labels, one label alone, fewer groups than folds.
        KeyError: a site or layer was not collected.
    """
    fit.expect_sklearn()
    if not isinstance(collected, Collection):
        raise TypeError(f"lk.probe takes what lk.collect gives; got {type(collected).__name__}")
    folds, controls = whole("folds", folds, least=2), whole("controls", controls, least=1)
    seed = whole("seed", seed, least=0)
    if not isinstance(C, int | float) or not 0 < C < math.inf:
        raise ValueError(f"C must be a number above 0; got {C!r}")
    if not len(collected):
        raise ValueError("the collection has no rows yet; call lk.collect again to finish it")
    places = _places(collected, site, layers)
    positions = _positions(collected, by_position)
    y, classes = _labels(collected, labels)
    rows = collected.rows
    written = [json.dumps(text, sort_keys=True) for text in collected.store.items]
    text = np.unique(written, return_inverse=True)[1][rows.text.to_numpy()]  # the same for texts that are the same
    by_row = text if groups is None else [str(one) for one in _complete(collected, groups, "groups", "group")]
    names, group = np.unique(by_row, return_inverse=True)
    _check_groups(y, group, classes, folds, len(names))
    settings = {"C": C, "folds": folds, "controls": controls, "seed": seed}
    asked = {"site": site, "layers": None if layers is None else list(map(int, layers)), "by_position": by_position}
    recipe = {
        "collection": collected.code(), "load": collected.store.notes["load"], "versions": versions(),
        "labels": _plain(labels), "groups": None if groups is None else _plain(groups), **asked, **settings,
    }  # fmt: skip
    job = ProbeJob(collected, places, positions, y, classes, (group, text), recipe)
    finish(job, "probing", unit="layer", kept="probe", progress=progress)
    return job.probe


class ProbeJob:
    """The probes of one layer after the other, so that what is done is kept."""

    def __init__(
        self,
        collected: Collection,
        places: Sequence[Site],
        positions: Sequence[int | str],
        y: np.ndarray,
        classes: list[Any] | None,
        units: tuple[np.ndarray, np.ndarray],
        recipe: dict[str, Any],
    ) -> None:
        self.collected, self.places, self.y, self.recipe = collected, places, y, recipe
        self.groups, self._texts = units  # the number of its group, and of its text, for each row
        self.numbers, self.n_groups = classes is None, int(self.groups.max()) + 1
        self.controls: int = recipe["controls"]
        self.total, self.done = len(places), 0
        every = np.arange(len(collected))
        n = len(positions)
        self._rows = [every] if positions == ["all"] else [every[start::n] for start in range(n)]
        self._kept: list[dict[str, np.ndarray]] = []
        self._random = np.empty(0)
        self._chance = np.array([self._chance_of(y[rows]) for rows in self._rows])
        self._positions, self._classes = tuple(positions), None if classes is None else tuple(classes)

    @property
    def probe(self) -> Probe:
        """What is fitted so far."""
        names = self._kept[0] if self._kept else ()
        arrays: dict[str, Any] = {name: np.stack([one[name] for one in self._kept]) for name in names}
        layers = tuple(place.layer or 0 for place in self.places[: self.done])
        kind = str(replace(self.places[0], layer=None)) if self.places[0].head is None else str(self.places[0])
        found = Probe(kind, layers, self._positions, self._classes, self.recipe, chance=self._chance)
        return replace(found, **arrays, random=self._random) if self._kept else found

    def steps(self) -> Iterator[None]:
        """Fit what is left; yields after each layer."""
        self._folds = [self._splits(self.y[rows], rows) for rows in self._rows]
        self._shuffled = [[self._shuffle(n, rows) for n in range(self.controls)] for rows in self._rows]
        for place in self.places:
            rows = self.collected[place]
            x = rows.reshape(len(rows), -1).astype(np.float64)
            if not self._kept:
                draws = [self._random_features(n, x.shape[1]) for n in range(self.controls)]
                self._random = np.stack(
                    [[self._sums(z[rows], self.y[rows], rows, self._folds[p]) for p, rows in enumerate(self._rows)]
                     for z in draws]
                )  # fmt: skip
            self._kept.append(self._layer(x, rows.shape[1:]))
            self.done += 1
            yield

    def _layer(self, x: np.ndarray, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
        """The probes of one layer: the sums of their scores, those of shuffled labels, and their weights."""
        own, control, weights, biases, typical = [], [], [], [], []
        for p, rows in enumerate(self._rows):
            some, y = x[rows], self.y[rows]
            own.append(self._sums(some, y, rows, self._folds[p]))
            control.append([self._sums(some, other, rows, folds) for other, folds in self._shuffled[p]])
            whole = fit.fitted(some, y, numbers=self.numbers, penalty=self.recipe["C"])
            found = fit.weights_of(whole)
            longer = _lengthened(found, some, y, self.numbers)
            weights.append(longer.reshape(-1, *shape))
            sizes = np.linalg.norm(longer, axis=1) / np.maximum(np.linalg.norm(found, axis=1), 1e-30)
            biases.append(fit.bias_of(whole) * sizes)
            typical.append(np.linalg.norm(some, axis=1).mean())
        return {
            "own": np.stack(own), "shuffled": np.stack(control),
            "directions": np.stack(weights).astype(np.float32), "typical": np.array(typical),
            "biases": np.stack(biases),
        }  # fmt: skip

    def _sums(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray, folds: fit.Splits) -> np.ndarray:
        said = fit.predicted(x, y, folds, numbers=self.numbers, penalty=self.recipe["C"])
        return fit.sums(y, said, self.groups[rows], self.n_groups, numbers=self.numbers)

    def _splits(self, y: np.ndarray, rows: np.ndarray) -> fit.Splits:
        folds, seed = self.recipe["folds"], self.recipe["seed"]
        return fit.splits(y, self.groups[rows], folds, numbers=self.numbers, seed=seed)

    def _shuffle(self, n: int, rows: np.ndarray) -> tuple[np.ndarray, fit.Splits]:
        draw = np.random.default_rng([self.recipe["seed"], 1, n])
        y = fit.shuffled(self.y[rows], self.groups[rows], self._texts[rows], draw)
        return y, self._splits(y, rows)

    def _random_features(self, n: int, d: int) -> np.ndarray:
        """Numbers drawn for each token, (rows, d): a random projection of which token it is."""
        kinds, of = np.unique(self.collected.ids, return_inverse=True)
        return np.random.default_rng([self.recipe["seed"], 2, n]).standard_normal((len(kinds), d))[of]

    def _chance_of(self, y: np.ndarray) -> float:
        """The score of the best constant answer: that of the mean, or of the commonest class."""
        return 0.0 if self.numbers else float(np.bincount(y).max() / len(y))


def _lengthened(weights: np.ndarray, x: np.ndarray, y: np.ndarray, numbers: bool) -> np.ndarray:
    """Weights (outputs, d) as long as the activations differ along them: between a class and the others on average, or
    per unit of a number."""
    units = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), 1e-30)
    along = x @ units.T  # (rows, outputs)
    if numbers:
        apart = ((along - along.mean(0)) * (y - y.mean())[:, None]).mean(0) / y.var()
    else:
        classes = [1] if len(weights) == 1 else range(len(weights))
        apart = np.array([along[y == c, n].mean() - along[y != c, n].mean() for n, c in enumerate(classes)])
    return units * np.abs(apart)[:, None]


def _places(collected: Collection, site: str | None, layers: Sequence[int] | None) -> list[Site]:
    """The site in each layer that is probed."""
    kinds = list(dict.fromkeys(str(one) if one.head is not None else one.kind for one in collected.kept))
    if site is None:
        if len(kinds) > 1:
            raise ValueError(f"the collection has several kinds of site; name one, such as site={kinds[0]!r}")
        site = kinds[0]
    wanted = Site.parse(site)
    if wanted.layer is not None and layers is not None:
        raise ValueError(f"site={site!r} is of one layer; leave out layers=")
    if layers is not None and (not isinstance(layers, Iterable) or isinstance(layers, str)):
        raise ValueError(f"layers must be a list of layers, such as [{layers}]")
    asked = [wanted] if layers is None else [Site(wanted.kind, int(layer)) for layer in layers]
    if not asked:
        raise ValueError("layers=[] names no layer to probe")
    return list(dict.fromkeys(one for some in asked for _, one in collected.places(some)))


def _positions(collected: Collection, by_position: bool | None) -> list[Any]:
    """What is probed apart: the positions that each text has, or all together."""
    listed = collected.positions if isinstance(collected.positions, list) else []
    if by_position and not listed:
        raise ValueError(
            "by_position=True needs positions that every text has; collect with a list of them, such as "
            "positions=[-2, -1]"
        )
    return listed if listed and (by_position or by_position is None) else ["all"]


def _labels(collected: Collection, labels: Labels) -> tuple[np.ndarray, list[Any] | None]:
    """The label of each row as a number: of its class, which are listed, or its own."""
    given = _complete(collected, labels, "labels", "label")
    classes, y = np.unique(given.astype(str) if given.dtype == object else given, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"all rows have the label {classes.tolist()[0]!r:.60}; there is nothing to tell apart")
    if np.issubdtype(given.dtype, np.floating) and len(classes) > 2:
        return given.astype(np.float64), None
    return y, classes.tolist()


def _complete(collected: Collection, values: Labels, what: str, one: str) -> np.ndarray:
    """Labels or groups by row, of which none is missing.

    Raises:
        ValueError: some are, or they are not texts or finite numbers, which a file can hold.
    """
    import pandas as pd

    given = collected.by_row(values, what=what)
    if missing := int(pd.isna(given).sum()):
        raise ValueError(f"{missing} of {len(given)} rows have no {one} (None or NaN); collect only what has one")
    for value in _plain(given):
        if not isinstance(value, str | int | float) or value in (math.inf, -math.inf):
            raise ValueError(f"{what} are texts or finite numbers; got {value!r:.60}")
    return given


def _check_groups(y: np.ndarray, groups: np.ndarray, classes: list[Any] | None, folds: int, count: int) -> None:
    """Refuse groups that cannot be split."""
    if count < folds:
        raise ValueError(f"{folds} folds need as many groups; there are {count}. Collect more texts, or lower folds=")
    for number, name in enumerate(classes or ()):
        if len(np.unique(groups[y == number])) < 2:
            raise ValueError(
                f"the label {name!r} is in one group alone, so it is never both learned and asked for; "
                f"there are {len(classes or ())} labels in {count} groups"
            )


def _plain(values: Any) -> Any:
    """Labels for JSON and code."""
    if isinstance(values, str):
        return values
    return [one.item() if isinstance(one, np.generic) else one for one in np.asarray(values).tolist()]
