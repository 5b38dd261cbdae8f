"""How well predictions fit, by scikit-learn and scipy."""

from __future__ import annotations

import math
import warnings
from typing import Dict, Optional

import numpy as np

Measures = Dict[str, Optional[float]]


def measures(labels: np.ndarray, predictions: np.ndarray, regression: bool) -> Measures:
    """Classes [n]: accuracy, F1 (mean over the classes that labels or predictions have), MCC.

    Numbers [n]: Pearson, Spearman, mean squared error.

    None where a correlation is not defined: Pearson and Spearman of constant labels or predictions, MCC of labels of
    one class. MCC of predictions of one class, where labels have more, is 0, as in scikit-learn and GLUE.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of predictions or labels that are all the same, which the values say
        return _correlations(labels, predictions) if regression else _of_classes(labels, predictions)


def _of_classes(labels: np.ndarray, predictions: np.ndarray) -> Measures:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    one_class = bool((labels == labels[0]).all())  # scikit-learn's 0 would stand beside an accuracy of 1
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1": float(f1_score(labels, predictions, average="macro", zero_division=0.0)),
        "mcc": None if one_class else float(matthews_corrcoef(labels, predictions)),
    }


def _correlations(labels: np.ndarray, predictions: np.ndarray) -> Measures:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error

    found = [float(of(labels, predictions)[0]) if len(labels) > 1 else math.nan for of in (pearsonr, spearmanr)]
    pearson, spearman = (value if math.isfinite(value) else None for value in found)
    return {"pearson": pearson, "spearman": spearman, "mse": float(mean_squared_error(labels, predictions))}


def better(found: Measures, before: Measures | None) -> bool:
    """Whether a validation is better than the best before it: by accuracy, or by mean squared error."""
    if before is None:
        return True
    if "mse" in found:
        return _value(found, "mse") < _value(before, "mse")
    return _value(found, "accuracy") > _value(before, "accuracy")


def _value(found: Measures, name: str) -> float:
    value = found[name]
    assert value is not None
    return value
