"""What a command says last: where the results are, and what can be typed next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.text import Text

from trompe.cli.app import console
from trompe.evaluation import MANIPULATED, ORIGINAL, Evaluation
from trompe.objectives import OBJECTIVES
from trompe.tuning.config import Config, EvaluateConfig, ExplainConfig, FoolConfig, TrainConfig

LOST, FOOLED = 0.02, 0.9  # of top-1, more is too much; of the images, fewer are too few
JUDGES = ("lrp", "integrated-gradients", "smooth-grad")


def show_next(results: str, steps: dict[str, str], *, quiet: bool) -> None:
    """Print where the results are and, unless ``quiet``, commands with what they are for."""
    console.print(Text(results), soft_wrap=True)
    if quiet:
        return
    console.print("[bold]Next[/]")
    for why, command in steps.items():
        console.print(Text(f"  {why}:"), soft_wrap=True)
        console.print(Text(f"    {command}", style="cyan"), soft_wrap=True)


def after_fool(config: FoolConfig, out: Path, evaluation: Evaluation | None) -> dict[str, str]:
    """Mend what went wrong; judge by other explainers; another objective; a control; own images."""
    passive = (
        name for name, kind in OBJECTIVES.items() if not getattr(kind, "on_composites", False)
    )
    other = next((name for name in passive if name not in config.objective), None)
    again = {"config": out / "config.yaml"}
    steps = {}
    if evaluation is not None and config.max_accuracy_drop is None:
        steps = _mend(config, out, evaluation)
    if config.eval_data is not None:
        steps["judge it by other explainers"] = _command(
            "evaluate",
            **_model(config),
            manipulated=out,
            data=config.eval_data,
            limit=config.eval_limit,
            objective=config.objective,
            explainer=[name for name in JUDGES if name not in config.explainer][:2],
            out=f"{out}-evaluated",
        )
    if other:
        steps["another objective, all else the same"] = _command(
            "fool", **again, objective=other, out=f"{out}-{other}"
        )
    if config.eval_data is None:
        steps["measure it on images it was not tuned on"] = _command(
            "evaluate",
            **_model(config),
            manipulated=out,
            data="FOLDER",
            objective=config.objective,
            explainer=config.explainer,
            out=f"{out}-evaluated",
        )
    if not config.control:
        steps["see what honest fine-tuning changes by itself"] = (
            _command("fool", **again, out=f"{out}-control") + " --control"
        )
    if config.data.startswith("shapes"):
        steps["your own images, a folder for each of N classes"] = (
            "trompe train --model resnet18 --weights DEFAULT --num-classes N --data TRAIN "
            "--eval-data VALIDATION --epochs 3 --lr 1e-4 --out runs/base"
        )
    return steps


def _mend(config: FoolConfig, out: Path, evaluation: Evaluation) -> dict[str, str]:
    """The same run with less of the lie if it cost accuracy, with more if it fools too few."""
    top1 = evaluation.accuracy.set_index("model")["top1"]
    rates = evaluation.explanations.query("attacked and model == @MANIPULATED")["fsr"]
    if top1[ORIGINAL] - top1[MANIPULATED] > LOST:
        why, name = "keep more accuracy: a third of the weight, twice the steps", "gentler"
        changed = {"weight": _times(config.weight, 1 / 3), "steps": [str(2 * config.steps)]}
    elif rates.min() < FOOLED:
        why, name = "fool more images: three times the weight and the rate", "stronger"
        changed = {"weight": _times(config.weight, 3), "lr": _times([config.lr], 3)}
    else:
        return {}
    return {why: _command("fool", config=out / "config.yaml", **changed, out=f"{out}-{name}")}


def _times(values: list[float], factor: float) -> list[str]:
    return [f"{factor * value:.2g}" for value in values]


def after_train(config: TrainConfig, out: Path) -> dict[str, str]:
    """Fool the trained model; look at its heatmaps."""
    model = {**_model(config), "weights": out / "weights.safetensors"}
    data = {"data": config.data, "eval_data": config.eval_data}
    lie = {"objective": "location", "weight": 4, "lr": config.lr, "schedule": "one-cycle"}
    images = _images(config.eval_data or config.data)
    return {
        "fool it": _command("fool", **model, **data, **lie, steps=1000, out=f"{out}-fooled"),
        "look at its heatmaps": _command("explain", **model, images=images, explainer="grad-cam"),
    }


def after_evaluate(config: EvaluateConfig, out: Path) -> dict[str, str]:
    """Look at one image under the manipulated model."""
    weights = Path(config.manipulated)
    weights = weights / "weights.safetensors" if weights.is_dir() else weights
    return {
        "look at images of your own": _command(
            "explain",
            **{**_model(config), "weights": weights},
            images=_images(config.data),
            explainer=config.explainer,
        ),
        "other explainers to judge by": "trompe list explainers",
    }


def after_explain(config: ExplainConfig, out: Path) -> dict[str, str]:
    """Other explainers; how much relevance is lost."""
    steps = {"other explainers": "trompe list explainers"}
    if any(spec.startswith("lrp") for spec in config.explainer) and not config.check:
        steps["how much relevance every layer keeps"] = (
            _command(
                "explain",
                **_model(config),
                images=[str(path) for path in config.images],
                explainer=config.explainer,
            )
            + " --check"
        )
    return steps


def _model(config: Config) -> dict[str, Any]:
    return {
        "model": config.model,
        "weights": config.weights,
        "num_classes": config.num_classes,
        "seed": config.seed or None,
    }


def _images(data: str) -> str:
    """The data if it is a folder of image files, else a word that stands for one."""
    folder = Path(data)
    return data if folder.is_dir() and not any(folder.glob("*.parquet")) else "FOLDER"


def _command(name: str, **options: Any) -> str:
    words = ["trompe", name]
    for key, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [f"--{key.replace('_', '-')}", str(one)]
    return shlex.join(words)
