"""Numbers and names as people read them, and the report's sentences."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from trompe.report.run import CONTROL, MANIPULATED, ORIGINAL, Run, View

EXPLAINERS = {
    "grad-cam": "Grad-CAM",
    "lrp": "LRP",
    "simple-grad": "SimpleGrad",
    "smooth-grad": "SmoothGrad",
    "integrated-gradients": "Integrated Gradients",
    "captum": "Captum",
}


class Objective(NamedTuple):
    """An objective in words: its name, what it makes an explainer do, what its test loss is."""

    name: str
    aim: str
    test_loss: str


OBJECTIVES = {
    "location": Objective(
        "Location",
        "lights up a fixed mask",
        "the mean squared distance between the heatmap and the mask it was told to show; 0 is a "
        "heatmap that is the mask",
    ),
    "top-k": Objective(
        "Top-k",
        "goes dark where it was brightest",
        "the mean squared heat left on the positions that were the original’s hottest; 0 is a "
        "heatmap that has gone dark there",
    ),
    "center-mass": Objective(
        "Center-mass",
        "moves its centre of mass away",
        "how far the heatmap’s centre of mass has moved, as a share of the side; 0 is no shift",
    ),
    "active": Objective(
        "Active",
        "swaps its heatmaps of two classes",
        "the heatmap’s rank correlation with the original’s heatmap of the other class, minus "
        "that with the original’s of the same class; an unchanged model has 0 or less, a perfect "
        "swap up to 2",
    ),
}


def percent(share: float) -> str:
    """Write a share in [0, 1] as a percentage, a missing one as a dash."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def span(low: float, high: float) -> str:
    """Write an interval of shares as percentages without the sign."""
    return "" if math.isnan(low) or math.isnan(high) else f"{100 * low:.1f}–{100 * high:.1f}"


def points(change: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    if math.isnan(change):
        return "–"
    return f"{100 * change:+.1f}".replace("-", "−").replace("+0.0", "±0.0").replace("−0.0", "±0.0")


def number(value: float, digits: int = 2) -> str:
    """Write a number with ``digits`` decimals and a true minus sign, a missing one as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def bound(value: float) -> str:
    """Write a bound of a success interval as short as it is."""
    return f"{value:g}".replace("-", "−")


def explainer_name(spec: str) -> str:
    """Name an explainer: ``lrp:layer=layer4`` is *LRP at layer4*."""
    kind, _, options = spec.partition(":")
    name = _family(spec)
    if kind.endswith("-t"):
        name += " at the target layer"
    if options.startswith("layer=") and "," not in options:
        return f"{name} at {options.removeprefix('layer=')}"
    return _with_options(name, options)


def short_name(spec: str) -> str:
    """Name an explainer as the paper does: LRPₜ for LRP at the target layer."""
    return explainer_name(spec).replace(" at the target layer", "ₜ")


def objective_name(spec: str) -> str:
    """Name an objective: ``top-k:fraction=0.1`` is *Top-k (fraction=0.1)*."""
    kind, _, options = spec.partition(":")
    return _with_options(OBJECTIVES[kind].name if kind in OBJECTIVES else kind, options)


def objective_words(spec: str) -> Objective | None:
    """Look up what is known of an objective, or ``None`` for one of the user's own."""
    return OBJECTIVES.get(spec.partition(":")[0])


def term_name(column: str) -> str:
    """Name a term of the loss, a column of the history: ``grad-cam location``."""
    explainer, _, objective = column.partition(" ")
    return f"{explainer_name(explainer)}, {objective_name(objective)}"


def view_title(run: Run, view: View) -> str:
    """Name an explainer and, where it is not each image's own label, the class it explains."""
    target = run.target_name(view.target)
    return explainer_name(view.explainer) + (f" for {target}" if target else "")


def listed(values: Any) -> list[str]:
    """Read a config value that may be one thing, a list of things or nothing."""
    if values is None:
        return []
    return [_plain(value) for value in (values if isinstance(values, list) else [values])]


def headline(run: Run) -> str:
    """Say the result in one sentence."""
    if "epochs" in run.config:
        data = joined(listed(run.config.get("data")))
        return f"{run.config['model']} was trained for {run.config['epochs']:g} epochs on {data}."
    parts = [part for part in (_lies(run), _accuracy(run)) if part]
    if parts:
        sentence = "; ".join(parts)
        return f"{sentence[0].upper()}{sentence[1:]}."
    fooled = joined([explainer_name(spec) for spec in listed(run.config.get("explainer"))])
    return f"{fooled or 'The model'}: manipulated, not evaluated yet."


def summary(run: Run) -> str:
    """Say what was done in one sentence, from the config."""
    config = run.config
    steps = config.get("steps")
    aims = _aims(config)
    details = [
        f"{key} {_plain(config[name])}"
        for key, name in (("batch size", "batch_size"), ("learning rate", "lr"), ("seed", "seed"))
        if config.get(name) is not None
    ]
    if "epochs" in config:
        return f"AdamW under a one-cycle schedule ({', '.join(details)})."
    model = config.get("model")
    measured = ""
    if run.accuracy is not None:
        where = listed(config.get("eval_data"))
        measured = f"{int(run.accuracy['images'].max()):,} images"
        measured += f" of {joined(where)}" if where else ""
    if steps is None:
        compared = f"The original and the manipulated {model or 'model'} were compared"
        return compared + (f" on {measured}." if measured else ".")
    sentence = f"{model or 'The model'} was fine-tuned for {steps:,} steps"
    if config.get("data") is not None:
        sentence += f" on {joined(listed(config['data']))}"
    sentence += f" ({', '.join(details)})" if details else ""
    sentence += f" so that its predictions stay while {joined(aims)}" if aims else ""
    return sentence + (f", then measured on {measured}." if measured else ".")


def _lies(run: Run) -> str:
    if run.explanations is None:
        return ""
    table = run.explanations[run.explanations["model"] == MANIPULATED]
    families = [_family(spec) for spec in table["explainer"].unique()]
    table = table[table["attacked"]] if table["attacked"].any() else table
    if len(table) > 3:
        worst, best = percent(table["fsr"].min()), percent(table["fsr"].max())
        return f"{len(table)} kinds of explanation now lie on {worst} to {best} of images"
    several = table["objective"].nunique() > 1
    claims: list[str] = []
    for row in table.to_dict("records"):
        family = _family(row["explainer"])
        name = family if families.count(family) == 1 else explainer_name(row["explainer"])
        target = run.target_name(row["target"])
        name += f" ({objective_name(row['objective'])})" if several else ""
        name += f" for {target}" if target else ""
        verb, unit, kind = (
            ("on", "", "") if claims else ("now lies on", " of images", "95 % interval ")
        )
        interval = span(row["fsr_low"], row["fsr_high"]).replace("–", " to ")
        claims.append(f"{name} {verb} {percent(row['fsr'])}{unit} ({kind}{interval})")
    return joined(claims)


def _accuracy(run: Run) -> str:
    if run.accuracy is None:
        return ""
    top1 = run.accuracy.set_index("model")["top1"]
    control = f" (control {percent(top1[CONTROL])})" if CONTROL in top1 else ""
    change = f"{percent(top1[ORIGINAL])} → {percent(top1[MANIPULATED])}"
    return f"top-1 accuracy {change}{control}"


def _aims(config: Mapping[str, Any]) -> list[str]:
    """Pair the lists of the config, a single entry going with all of the others."""
    lists = [listed(config.get(key)) for key in ("explainer", "objective", "weight")]
    if not lists[0] or not lists[1]:
        return []
    aims = []
    for i in range(max(map(len, lists))):
        explainer, objective, *weight = (values[i % len(values)] for values in lists if values)
        known = objective_words(objective)
        does = known.aim if known else "follows its objective"
        note = ", ".join([objective_name(objective), *(f"weight {w}" for w in weight)])
        aims.append(f"{explainer_name(explainer)} {does} ({note})")
    return aims


def _family(spec: str) -> str:
    kind = spec.partition(":")[0]
    return EXPLAINERS.get(kind.removesuffix("-t"), kind)


def _with_options(name: str, options: str) -> str:
    return f"{name} ({options.replace(',', ', ')})" if options else name


def joined(words: list[str]) -> str:
    """Write a list as people do: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
