"""One linear probe: fitted by scikit-learn, judged on groups that it has not seen.

Activations are standardised inside each fold, by the rows that the probe learns from. Classes are told by a logistic
regression, numbers by a ridge regression.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any

import numpy as np

from labkit._version import install_command

Splits = list[tuple[np.ndarray, np.ndarray]]
"""For each fold the rows that are learned from, and those that are predicted."""
STEPS = 2000


def expect_sklearn() -> None:
    """Raise an error that says what to install, where scikit-learn is missing.

    Raises:
        ImportError: it is.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError(f"lk.probe needs scikit-learn, which is not installed here: {install_command('probe')}")


def splits(y: np.ndarray, groups: np.ndarray, folds: int, *, numbers: bool, seed: int) -> Splits:
    """Folds that share no group; those of classes (n,) have about the same share of each."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    chosen = GroupKFold(folds) if numbers else StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of a class that not every fold can have
        warnings.simplefilter("ignore", UserWarning)
        return list(chosen.split(y, y, groups))


def fitted(x: np.ndarray, y: np.ndarray, *, numbers: bool, penalty: float) -> Any:
    """A probe of x (rows, d) for y (rows,), with its standardisation.

    Args:
        penalty: C, the inverse of the strength of the L2 penalty.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = Ridge(alpha=1 / penalty) if numbers else LogisticRegression(C=penalty, max_iter=STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), probe).fit(x, y)


def predicted(x: np.ndarray, y: np.ndarray, folds: Splits, *, numbers: bool, penalty: float) -> np.ndarray:
    """What probes say of y (rows,) that have not seen a row's group."""
    found = np.empty(len(y), np.float64 if numbers else y.dtype)
    for learned, asked in folds:
        if not numbers and len(kinds := np.unique(y[learned])) == 1:  # nothing to tell apart
            found[asked] = kinds[0]
        else:
            found[asked] = fitted(x[learned], y[learned], numbers=numbers, penalty=penalty).predict(x[asked])
    return found


def weights_of(probe: Any) -> np.ndarray:
    """The weights of a probe for activations as they are, (outputs, d): its standardisation undone."""
    scaler, linear = probe[0], probe[-1]
    return np.atleast_2d(linear.coef_) / scaler.scale_


def bias_of(probe: Any) -> np.ndarray:
    """What a probe adds to its weights' dot products with activations as they are, (outputs,)."""
    return np.atleast_1d(probe[-1].intercept_) - weights_of(probe) @ probe[0].mean_


def sums(y: np.ndarray, predicted: np.ndarray, groups: np.ndarray, count: int, *, numbers: bool) -> np.ndarray:
    """What the score of any choice of groups can be computed from, (groups, ...), float64.

    Of classes: rows, and rows that are right. Of numbers: rows, the sum of y and of its square, and of the squared
    errors.
    """
    ones = np.ones(len(y))
    parts = [ones, y, y**2, (y - predicted) ** 2] if numbers else [ones, (y == predicted).astype(np.float64)]
    return np.stack([np.bincount(groups, part, minlength=count) for part in parts], -1)


def score(summed: np.ndarray) -> np.ndarray:
    """Accuracy, or R² of numbers, from sums over groups (..., 2) or (..., 4)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if summed.shape[-1] == 2:
            return summed[..., 1] / summed[..., 0]
        rows, total, squares, errors = np.moveaxis(summed, -1, 0)
        return 1 - errors / (squares - total**2 / rows)


def shuffled(y: np.ndarray, groups: np.ndarray, texts: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Labels in another order.

    Those that all rows of a group, or of a text, share stay together, so that a probe that only knows groups or texts
    apart has the same chance as with the true labels.
    """
    kept = []
    for units in (groups, texts, np.arange(len(y))):
        _, first, of = np.unique(units, return_index=True, return_inverse=True)
        if np.array_equal(y[first][of], y):
            kept.append((first, of))
    first, of = min(kept, key=lambda one: len(one[0]))
    return draw.permutation(y[first])[of]
