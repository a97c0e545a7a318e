"""Fit the rules of the verdict on a zoo, and try them on networks they were not fitted on."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata

from trompe.audit.verdict import ALARMS, Normal, Rule

RIDGE = 10.0  # penalty on squared weights; one model weighs 1
OF_EVIDENCE = ["section", "kind", "question", "suspicious", "explainer", "family", "layer", "score"]
Floats = NDArray[np.float64]


def fit(evidence: pd.DataFrame) -> Rule:
    """What is normal, and non-negative weights by ridge logistic regression.

    Parameters
    ----------
    evidence
        Rows of many models: columns ``model``, ``manipulated``, ``kind``, ``suspicious``,
        ``family``, ``score``.
    """
    honest = evidence[~evidence["manipulated"]]
    normal: dict[str, dict[str, Normal]] = {}
    for (kind, family), scores in honest.groupby(["kind", "family"])["score"]:
        if scores.notna().any():
            low, median, high = scores.dropna().quantile([0.05, 0.5, 0.95])
            normal.setdefault(str(kind), {})[str(family)] = Normal(low, median, high)
    rule = Rule(normal, {}, 0.0)
    features, lies = _features(rule, evidence)
    found, intercept = _logistic(features.to_numpy(), lies.to_numpy())
    each = pd.Series(found, features.columns).groupby(level="kind")
    weights = {
        str(kind): {str(family): weight for family, weight in of.droplevel("kind").items()}
        for kind, of in each
    }
    return Rule(normal, weights, intercept)


def totals(rule: Rule, evidence: pd.DataFrame) -> pd.Series:
    """The rule's sum for every model."""
    return rule.judged(evidence).groupby("model")["weighed"].sum() + rule.intercept


def cross_validated(evidence: pd.DataFrame) -> tuple[Rule, pd.DataFrame]:
    """The rule fitted on all networks, and every model judged by a rule without its network.

    Parameters
    ----------
    evidence
        As for `fit`, with the column ``network``: the models' architecture.

    Returns
    -------
    The rule, its threshold and its false alarms from the held-out totals; and one row per model:
    ``total``, ``alarm`` (at the pooled threshold) and ``alarm_before`` (at the threshold that
    the networks fitted on would have set).
    """
    parts = []
    for network in evidence["network"].unique():
        held_out = evidence["network"] == network
        rule = fit(evidence[~held_out])
        fitted = totals(rule, evidence[~held_out])
        lies = evidence[~held_out].groupby("model")["manipulated"].first()
        before = fitted[~lies].quantile(1 - ALARMS)
        judged = totals(rule, evidence[held_out]).rename("total").reset_index()
        parts.append(judged.assign(alarm_before=judged["total"] > before))
    about = evidence.drop(columns=OF_EVIDENCE, errors="ignore").drop_duplicates("model")
    table = pd.concat(parts).merge(about, on="model")
    honest = sorted(table.loc[~table["manipulated"], "total"])
    whole = fit(evidence)
    rule = Rule(whole.normal, whole.weights, whole.intercept, tuple(honest))
    table["alarm"] = table["total"] > rule.threshold
    found = float(table.loc[table["manipulated"], "alarm"].mean())
    return Rule(rule.normal, rule.weights, rule.intercept, rule.honest, found), table


def auroc(totals: Floats, manipulated: NDArray[np.bool_]) -> float:
    """Probability that a manipulated model has a higher total than an honest one."""
    positive, negative = int(manipulated.sum()), int((~manipulated).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(totals)[manipulated].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def _features(rule: Rule, evidence: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    judged = rule.judged(evidence)
    table = judged.pivot_table(index="model", columns=["kind", "family"], values="suspicion")
    table = table.reindex(evidence["model"].unique()).fillna(0.0)
    lies = evidence.groupby("model")["manipulated"].first()
    return table, lies.loc[table.index]


def _logistic(features: Floats, lies: NDArray[np.bool_]) -> tuple[list[float], float]:
    """Ridge logistic regression with weights of at least 0; both classes weigh the same."""
    sign = np.where(lies, 1.0, -1.0)
    weight = np.where(lies, 0.5 / max(lies.mean(), 1e-9), 0.5 / max((~lies).mean(), 1e-9))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        margins = sign * (features @ parameters[:-1] + parameters[-1])
        value = (weight * np.logaddexp(0, -margins)).sum() + RIDGE / 2 * (
            parameters[:-1] ** 2
        ).sum()
        slope = -weight * sign / (1 + np.exp(np.clip(margins, -500, 500)))
        gradient = np.append(features.T @ slope + RIDGE * parameters[:-1], slope.sum())
        return float(value), gradient

    bounds = [(0, None)] * features.shape[1] + [(None, None)]
    start = np.zeros(features.shape[1] + 1)
    *weights, intercept = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x
    return [float(w) for w in weights], float(intercept)
