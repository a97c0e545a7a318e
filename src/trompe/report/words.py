"""Numbers and names as people read them, and the report's sentences."""

import math
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from trompe.data.triggers import NO_TRIGGER
from trompe.errors import printable
from trompe.evaluation.schema import CONTROL, MANIPULATED, ORIGINAL
from trompe.objectives import OBJECTIVES, Same
from trompe.report.run import Run, View, described


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


def unbroken(text: str) -> Markup:
    """Keep words with a hyphen, such as top-1 and Grad-CAM, on one line."""
    return Markup(
        re.sub(r"[\w-]*\w-\w+", r'<span class="whole">\g<0></span>', str(escape(printable(text))))
    )


def named(text: str) -> str:
    """What people call the explainer or objective of this text."""
    return subscript(str(described(text)["label"]))


def subscript(title: str) -> str:
    """A title as the paper prints it: LRPₜ for LRP_T."""
    return title.replace("_T", "ₜ")


def family_name(text: str) -> str:
    """The family of the explainer of this text, as the paper prints it."""
    return subscript(str(described(text)["title"]))


def objective_title(name: str) -> str:
    """The objective of this name, as people write it."""
    return str(getattr(OBJECTIVES.get(name), "title", name))


def term_names(run: Run) -> dict[str, str]:
    """Terms of the loss, columns of the history, in words."""
    pairs = [(explainer, objective) for explainer, objective, _ in _terms(run.settings)]
    return {
        " ".join(pair): ", ".join(str(run.told(text)["label"]) for text in pair) for pair in pairs
    }


def view_title(run: Run, view: View) -> str:
    """Name an explainer and, where it is not each image's own label, the class it explains."""
    target = run.target_name(view.target)
    return run.label(view.explainer) + (f" for {target}" if target else "")


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
    fooled = joined([run.told(spec)["label"] for spec in listed(run.config.get("explainer"))])
    return f"{fooled or 'The model'}: manipulated, not evaluated yet."


def summary(run: Run) -> str:
    """Say what was done in one sentence, from the config."""
    config = run.settings
    steps = config.get("steps")
    aims = _aims(run)
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
    flips = run.explanations is not None and run.explanations["flip_to"].notna().any()
    without = " where no trigger is" if flips else ""
    sentence += f" so that its predictions stay{without} while {joined(aims)}" if aims else ""
    sentence += f", then measured on {measured}." if measured else "."
    return sentence + (f" {run.found}" if run.found else "")


def about(run: Run) -> dict[str, Any] | None:
    """What an explanation of the attack names, if there was one."""
    if run.explanations is None or not run.explanations["attacked"].any():
        return None
    rows = run.explanations
    titles, attacked = (
        [*dict.fromkeys(subscript(run.legend[e]["title"]) for e in part["explainer_id"])]
        for part in (rows, rows[rows["attacked"]])
    )
    return {"explainers": joined(titles), "several": len(titles) > 1, "attacked": joined(attacked)}


def _lies(run: Run) -> str:
    if run.explanations is None:
        return ""
    table = run.explanations[run.explanations["model"] == MANIPULATED]
    held = (table["objective"] == Same.name) & (table["trigger_id"] == NO_TRIGGER)
    table = table if held.all() else table[~held]  # maps that are held are no lie
    titles = [run.legend[e]["title"] for e in table["explainer_id"].unique()]
    table = table[table["attacked"]] if table["attacked"].any() else table
    if len(table) > 3:
        worst, best = percent(table["fsr"].min()), percent(table["fsr"].max())
        return f"{len(table)} kinds of explanation now lie on {worst} to {best} of images"
    several = table["objective_id"].nunique() > 1
    claims: list[str] = []
    for row in table.to_dict("records"):
        title = run.legend[row["explainer_id"]]["title"]
        once = titles.count(title) == 1
        name = subscript(title) if once else run.label(row["explainer_id"])
        target = run.target_name(row["target"])
        name += f" ({run.label(row['objective_id'])})" if several else ""
        name += f" for {target}" if target else ""
        verb, unit, kind = (
            ("on", "", "") if claims else ("now lies on", " of images", "95 % interval ")
        )
        interval = span(row["fsr_low"], row["fsr_high"]).replace("–", " to ")
        others = [f"untouched {percent(row['untouched'])}"]
        others += [] if math.isnan(row["control"]) else [f"control {percent(row['control'])}"]
        claims.append(
            f"{name} {verb} {percent(row['fsr'])}{unit} ({kind}{interval}; {', '.join(others)})"
        )
    return joined(claims)


def _accuracy(run: Run) -> str:
    if run.accuracy is None:
        return ""
    top1 = run.accuracy.set_index("model")["top1"]
    control = f" (control {percent(top1[CONTROL])})" if CONTROL in top1 else ""
    change = f"{percent(top1[ORIGINAL])} → {percent(top1[MANIPULATED])}"
    return f"top-1 accuracy {change}{control}"


def _terms(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Explainer, objective and weight of each term, a single entry going with all of the others."""
    lists = [listed(config.get(key)) for key in ("explainer", "objective", "weight")]
    if not lists[0] or not lists[1]:
        return []
    lists[2] = lists[2] or [""]
    count = max(map(len, lists))
    explainers, objectives, weights = ([v[i % len(v)] for i in range(count)] for v in lists)
    return list(zip(explainers, objectives, weights, strict=True))


def _aims(run: Run) -> list[str]:
    aims = []
    for explainer, objective, weight in _terms(run.settings):
        told = run.told(objective)
        note = ", ".join([told["label"], *([f"weight {weight}"] if weight else [])])
        aims.append(f"{run.told(explainer)['label']} {told['aim']} ({note})")
    return aims


def joined(words: list[str]) -> str:
    """Write a list as people do: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
