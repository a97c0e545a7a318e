"""What a command says last: where the results are, and what can be typed next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from trompe import runs
from trompe.cli.app import console
from trompe.cli.jobs import AuditJob, EvaluateJob, ExplainJob, RepairJob
from trompe.evaluation import CONTROL, MANIPULATED, ORIGINAL, Evaluation
from trompe.explainers import LRP, parse_explainer
from trompe.objectives import OBJECTIVES, Same
from trompe.report.compare import Comparison
from trompe.tuning.job import DataJob, FoolJob, Job, TrainJob
from trompe.tuning.pilot import Found

LOST = 0.02  # of top-1, more is too much
FOOLED, NOTHING = 0.9, 0.1  # of the images, fewer are too few, and as good as none
JUDGES = ("smooth-grad", "lrp:composite=epsilon-plus")
RUN = {"out", "quiet", "data", "limit"}  # settings of one command, not of those after it
COMMANDS: dict[type[Job], str] = {
    AuditJob: "audit",
    RepairJob: "repair",
    EvaluateJob: "evaluate",
    ExplainJob: "explain",
    FoolJob: "fool",
    TrainJob: "train",
}


def show_next(results: str, steps: dict[str, str], *, quiet: bool) -> None:
    """Print where the results are and, unless ``quiet``, commands with what they are for."""
    console.print(results, soft_wrap=True)
    if quiet or not steps:
        return
    console.print("Next", style="bold")
    for why, command in steps.items():
        console.print(f"  {why}:", soft_wrap=True)
        console.print(Text(f"    {command}", style="cyan"), soft_wrap=True)


def after_fool(config: FoolJob, out: Path, evaluation: Evaluation | None) -> dict[str, str]:
    """Mend what went wrong; judge by other explainers; another objective; a control; own images."""
    passive = (
        name
        for name, kind in OBJECTIVES.items()
        if not getattr(kind, "on_composites", False) and name != Same.name
    )
    other = next((name for name in passive if name not in map(str, config.objective)), None)
    judged = {
        "manipulated": out,
        "control": out if config.control else None,
        "objective": config.objective,
        "target": config.target,
        "pairs": config.eval_pairs,
        "out": f"{out}-evaluated",
    }
    steps = {} if evaluation is None else _mend(config, out, evaluation)
    if config.eval_data is not None:
        steps["judge it by other explainers"] = _command(
            EvaluateJob,
            config,
            **judged,
            data=config.eval_data,
            limit=config.eval_limit,
            explainer=[name for name in JUDGES if name not in map(str, config.explainer)],
        )
    if other:
        steps["another objective, all else the same"] = _again(
            config, out, other, objective=[other]
        )
    if config.eval_data is None:
        steps["measure it on images it was not tuned on"] = _command(
            EvaluateJob, config, **judged, data="FOLDER", explainer=config.explainer
        )
    if not config.control:
        steps["see what honest fine-tuning changes by itself"] = _again(
            config, out, "control", control=True
        )
    if config.data.startswith("shapes"):
        steps["your own images, a folder for each of N classes"] = (
            "trompe train --model resnet18 --weights DEFAULT --num-classes N --data TRAIN "
            "--eval-data VALIDATION --epochs 3 --lr 1e-4 --out runs/base"
        )
    return steps


def _mend(config: FoolJob, out: Path, evaluation: Evaluation) -> dict[str, str]:
    """The same run with other settings, if it cost accuracy or fools too few."""
    models = evaluation.accuracy.set_index("model")
    top1 = models["top1"]
    lost = top1[ORIGINAL] - top1[MANIPULATED] > LOST
    lost &= models["top1_high"][MANIPULATED] < top1[ORIGINAL]
    lost &= top1[MANIPULATED] < models["top1_low"][ORIGINAL]
    rows = evaluation.explanations.query("attacked and model == @MANIPULATED")
    few = bool((rows["fsr"] < FOOLED).any())
    some = bool((rows["fsr"] - rows["untouched"] > NOTHING).any())
    drop = top1[ORIGINAL] - top1
    honest = drop.get(CONTROL, 0.0) > drop[MANIPULATED] / 2
    budget = config.max_accuracy_drop
    found = Found.load(out)
    weights = found.weight if found else config.weight or (1.0,)
    lr, taken = (config.lr or 0.0, config.steps or 0)
    changed: dict[str, Any]
    if few and budget is not None and not found:
        why, name = "fool more images for the same accuracy: three times the steps", "longer"
        changed = {"steps": 3 * taken}
    elif lost and budget is not None:
        why, name = "keep more accuracy: half the budget, measured on more images", "gentler"
        changed = {"max_accuracy_drop": _short(budget / 2)}
    elif lost and found:
        why, name = "keep more accuracy: at most one point of top-1 may be lost", "gentler"
        changed = {"max_accuracy_drop": 1}
    elif lost and (honest or not some):
        why, name = (
            "keep more accuracy: a third of the rate, ten times the steps",
            "slower",
        )
        changed = {"lr": _short(lr / 3), "steps": 10 * taken}
    elif lost:
        why, name = "keep more accuracy: a third of the weight, twice the steps", "gentler"
        changed = {"weight": [_short(w / 3) for w in weights], "steps": 2 * taken}
    elif few and found:
        why, name = "fool more images: three times the weight", "stronger"
        changed = {"weight": [_short(3 * w) for w in weights]}
    elif few:
        why, name = "fool more images: three times the weight and the rate", "stronger"
        changed = {"weight": [_short(3 * w) for w in weights], "lr": _short(3 * lr)}
    else:
        return {}
    return {why: _again(config, out, name, **changed)}


def _short(value: float) -> str:
    return f"{value:.2g}"


def after_train(config: TrainJob, out: Path) -> dict[str, str]:
    """Fool the trained model; look at its heatmaps."""
    weights = out / "weights.safetensors"
    data = {"data": config.data, "limit": config.limit, "eval_data": config.eval_data}
    data |= {"eval_limit": config.eval_limit}
    images = [_images(config.eval_data or config.data)]
    return {
        "fool it": _command(FoolJob, config, weights=weights, **data, out=f"{out}-fooled"),
        "look at its heatmaps": _command(
            ExplainJob, config, weights=weights, images=images, explainer=["grad-cam"]
        ),
    }


def after_evaluate(config: EvaluateJob, out: Path) -> dict[str, str]:
    """Look at one image under the manipulated model."""
    weights = Path(config.manipulated)
    weights = weights / "weights.safetensors" if weights.is_dir() else weights
    images = [_images(config.data)]
    return {
        "look at images of your own": _command(
            ExplainJob, config, weights=weights, images=images, explainer=config.explainer
        ),
        "other explainers to judge by": "trompe list explainers",
    }


def after_sweep(found: Comparison, folders: Mapping[str, Path]) -> dict[str, str]:
    """Take the settings that fool most among the runs that keep their accuracy, if there is one."""
    kept = found.runs[found.runs["drop"] <= LOST]
    if kept.empty or kept["fsr"].max() <= NOTHING:
        return {}
    best = str(kept.sort_values("fsr")["run"].iloc[-1])
    out = f"{folders[best].parent}-best"
    words = ["trompe", "fool", "--config", str(folders[best] / "config.yaml"), "--control"]
    why = f"the one that fools most for at most {100 * LOST:g} points of top-1, with a control"
    return {why: shlex.join([*words, "--out", out])}


def after_audit(config: AuditJob, out: Path, alarm: bool) -> dict[str, str]:
    """Restore what was manipulated; ask again with the model before; look at the heatmaps."""
    suspect: dict[str, Any] = {"explainer": config.explainer, "data": config.data}
    suspect["reference"] = config.reference
    steps = {}
    if alarm:
        steps["restore its explanations"] = _command(RepairJob, config, config.suspect, **suspect)
    if config.reference is None:
        suspect |= {"reference": "FILE", "limit": config.limit, "out": f"{out}-reference"}
        why = "ask again, with the weights of the model before, if you have them"
        steps[why] = _command(AuditJob, config, config.suspect, **suspect)
    return steps


def after_repair(config: RepairJob, out: Path) -> dict[str, str]:
    """Audit what was restored."""
    given: dict[str, Any] = {"data": config.data, "reference": config.reference}
    suspect, model = Path(config.suspect), config.model or config.suspect
    if config.model is None and suspect.is_dir():
        model = runs.config_of(suspect)["model"]
    given |= {"model": model, "explainer": config.explainer}
    weights = str(out / "weights.safetensors")
    return {"audit what is restored": _command(AuditJob, config, weights, **given)}


def after_explain(config: ExplainJob, out: Path) -> dict[str, str]:
    """Other explainers; how much relevance is lost."""
    steps = {"other explainers": "trompe list explainers"}
    explainers = map(parse_explainer, config.explainer)
    if any(isinstance(explainer, LRP) for explainer in explainers) and not config.check:
        given = config.model_dump(include={"images", "explainer", "target", "classes"})
        steps["how much relevance every layer keeps"] = _command(
            ExplainJob, config, **given, check=True
        )
    return steps


def _images(data: str) -> str:
    """The data if it is a folder of image files, else a word that stands for one."""
    folder = Path(data)
    return data if folder.is_dir() and not any(folder.glob("*.parquet")) else "FOLDER"


def _again(config: FoolJob, out: Path, name: str, **changed: Any) -> str:
    """The command that runs the same with some settings changed, in a directory of its own."""
    elsewhere = {"workers": config.workers} if config.workers else {}
    words = _words(config=out / "config.yaml", **elsewhere, out=f"{out}-{name}", **changed)
    return shlex.join(["trompe", "fool", *words])


def _command(kind: type[Job], config: Job, *argument: str, **given: Any) -> str:
    """A command of another kind on the same model, read like the same data.

    What both kinds of command are told of model and data is taken over where it is not the default.
    """
    shared = DataJob if issubclass(kind, DataJob) else Job
    names = [*shared.model_fields, "corrupt"]
    known = [n for n in names if n in kind.model_fields and n not in RUN]
    options = {
        name: value
        for name in known
        if (value := getattr(config, name, None)) != kind.model_fields[name].default
    }
    told = {
        name: value
        for name, value in (options | given).items()
        if name == "out" or value != kind.model_fields[name].default
    }
    return shlex.join(["trompe", COMMANDS[kind], *argument, *_words(**told)])


def _words(**options: Any) -> list[str]:
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, bool):
                words.append(f"--{name}" if one else f"--no-{name}")
            elif one is not None:
                words += [f"--{name}", str(one)]
    return words
