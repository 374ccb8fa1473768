"""Directions from activations and their classes alone: everything but ``das``.

Each method takes activations ``[example, width]`` with the class of each and gives vectors
``[d, width]``, of which :func:`fit` makes orthonormal ones that point to the positive class. k-means,
principal components, singular vectors and logistic regression are scikit-learn's.

Source: Tigges et al. 2023, arXiv:2310.15154.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from circuitdb.circuit import Json
from circuitdb.directions.direction import Vectors, orthonormal
from circuitdb.errors import OptionError, UnknownNameError

X = Float[np.ndarray, "example width"]
Positive = Bool[np.ndarray, " example"]
Others = Float[np.ndarray, "other width"]
PositiveOthers = Bool[np.ndarray, " other"]


class Fit(NamedTuple):
    """What a method found."""

    vectors: Any
    """``[d, width]``; :func:`fit` makes them orthonormal."""
    figures: dict[str, float]


def mean_diff(x: X, positive: Positive, dims: int, seed: int, settings: Json) -> Fit:
    """Mean of the positive class minus mean of the negative."""
    return Fit(_difference(x, positive)[None], {})


def kmeans(x: X, positive: Positive, dims: int, seed: int, settings: Json) -> Fit:
    """Difference of the centroids of two clusters, found without the classes."""
    from sklearn.cluster import KMeans

    with warnings.catch_warnings():
        # Fewer distinct examples than clusters: the centroids are equal, which is told below.
        warnings.simplefilter("ignore")
        found = KMeans(2, n_init=settings["n_init"], random_state=seed).fit(x)
    inside = found.labels_ == 1
    agree = float((inside == positive).mean())
    return Fit(
        (found.cluster_centers_[1] - found.cluster_centers_[0])[None],
        {"clusters_agree": max(agree, 1 - agree)},
    )


def pca(x: X, positive: Positive, dims: int, seed: int, settings: Json) -> Fit:
    """First principal components, found without the classes."""
    from sklearn.decomposition import PCA

    found = PCA(_at_most(dims, x), svd_solver="full").fit(x)
    return Fit(
        found.components_, {"explained_variance": float(found.explained_variance_ratio_.sum())}
    )


def svd(x: X, positive: Positive, dims: int, seed: int, settings: Json) -> Fit:
    """First right singular vectors of the activations, not centred and without the classes.

    Where the mean activation is large the first lies along it.
    """
    from sklearn.utils.extmath import randomized_svd

    # So many oversampled dimensions that the result is exact.
    n = _at_most(dims, x)
    _, s, vectors = randomized_svd(
        x, n, n_oversamples=min(x.shape) - n, n_iter=4, random_state=seed
    )
    return Fit(vectors, {"explained_square": float((s**2).sum() / (x**2).sum())})


def logistic_regression(x: X, positive: Positive, dims: int, seed: int, settings: Json) -> Fit:
    """Weights of a logistic regression of the class, L2-regularised, on activations over their scale."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    centred = x - x.mean(0)
    # One scale for all, so that directions keep their angles.
    scaled = centred / np.sqrt((centred**2).mean())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = LogisticRegression(C=settings["C"], max_iter=settings["max_iter"]).fit(
            scaled, positive
        )
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in told)
    return Fit(found.coef_, {"converged": float(converged)})


def random(x: X, positive: Positive, dims: int, seed: int, settings: Json) -> Fit:
    """Vectors drawn evenly from the sphere: the floor for every claim."""
    return Fit(np.random.default_rng(seed).standard_normal((dims, x.shape[1])), {})


Method = Callable[[X, Positive, int, int, Json], Fit]
METHODS: Final[dict[str, tuple[Method, Json]]] = {
    "kmeans": (kmeans, {"n_init": 10}),
    "pca": (pca, {}),
    "svd": (svd, {}),
    "mean_diff": (mean_diff, {}),
    "logistic_regression": (logistic_regression, {"C": 1.0, "max_iter": 1000}),
    "random": (random, {}),
}
"""Methods and their settings."""
ONE_VECTOR: Final = ("kmeans", "mean_diff", "logistic_regression")
"""Methods that give one vector, whatever the classes."""


def fit(
    method: str, x: X, positive: Positive, *, dims: int = 1, seed: int = 0, settings: Json
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Orthonormal vectors ``[d, width]``, each towards the positive class, and figures of the fit.

    Figures: ``accuracy`` is the share of the examples told right by the middle between the classes' means
    along the direction, of a subspace along the difference of the means within it; ``separation`` the
    distance of these means over the pooled standard deviation.

    Raises:
        UnknownNameError: no such method.
        OptionError: one class or no examples, constant activations, more dimensions than the method or
            the site has, or a fit that gives no direction.
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if not len(x) or positive.all() or not positive.any():
        raise OptionError(
            "a direction needs examples of both classes, and these are of one or none"
        )
    require_dims(method, dims, x.shape[1])
    if method != "random":
        _require_varied(x, positive, method)
    found = METHODS[method][0](x, positive, dims, seed, settings)
    try:
        vectors = orthonormal(np.atleast_2d(found.vectors))
    except OptionError as error:
        raise OptionError(f"the fit by {method} is singular: {error}") from error
    vectors = towards(vectors, x, positive)
    return vectors, found.figures | figures(vectors, x, positive)


def require_dims(method: str, dims: int, width: int) -> None:
    """Refuse a number of dimensions that a method or site does not have.

    Raises:
        OptionError: it is so.
    """
    if dims < 1:
        raise OptionError(f"a direction has 1 dimension or more, not {dims}")
    if dims > width:
        raise OptionError(f"a subspace of {dims} dimensions does not fit a site of width {width}")
    if dims > 1 and method in ONE_VECTOR:
        raise OptionError(f"{method} gives one vector: leave --dims out, or use pca, svd or das")


def _require_varied(x: X, positive: Positive, method: str) -> None:
    if not (x - x.mean(0)).any():
        raise OptionError(
            f"the fit by {method} is singular: all {len(x)} activations are equal, so that no "
            "direction tells them apart (the position comes before what differs?)"
        )
    spread = np.abs(x - x.mean(0)).max()
    if method in ("mean_diff", "logistic_regression") and (
        np.abs(_difference(x, positive)).max() <= 1e-9 * spread
    ):
        raise OptionError(
            f"the fit by {method} is singular: both classes have the same mean activation"
        )


def _at_most(dims: int, x: X) -> int:
    if dims > min(x.shape):
        raise OptionError(f"{len(x)} examples span no {dims} dimensions: give more prompts")
    return dims


def _difference(x: X, positive: Positive) -> NDArray[np.float64]:
    difference: NDArray[np.float64] = x[positive].mean(0) - x[~positive].mean(0)
    return difference


def towards(vectors: NDArray[np.float32], x: X, positive: Positive) -> NDArray[np.float32]:
    """The vectors, those turned round along which the negative class lies higher."""
    signs = np.where(vectors @ _difference(x, positive) < 0, -1, 1).astype(np.float32)
    return vectors * signs[:, None]


def figures(vectors: Vectors, x: X, positive: Positive) -> dict[str, float]:
    """``accuracy`` and ``separation`` of examples along a direction (:func:`fit`)."""
    along, middle = _along(vectors, x, positive, x)
    high, low = along[positive], along[~positive]
    pooled = np.sqrt((high.var() + low.var()) / 2)
    separation = (high.mean() - low.mean()) / pooled if pooled > 0 else 0.0
    return {
        "accuracy": float(((along > middle) == positive).mean()), "separation": float(separation),
    }  # fmt: skip


def held_out(
    vectors: Vectors, x: X, positive: Positive, others: Others, of_others: PositiveOthers
) -> float:
    """The share of other examples told right by the middle between the classes of the first."""
    along, middle = _along(vectors, x, positive, others)
    return float(((along > middle) == of_others).mean())


def _along(
    vectors: Vectors, x: X, positive: Positive, others: Others
) -> tuple[NDArray[np.float64], float]:
    """Places of `others` along the difference of the classes' means, and the middle between these."""
    basis = vectors.T.astype(np.float64)
    between = _difference(x @ basis, positive)
    means = [float((x[side] @ basis @ between).mean()) for side in (positive, ~positive)]
    return others @ basis @ between, sum(means) / 2
