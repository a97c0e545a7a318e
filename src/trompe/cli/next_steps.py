"""What a command says last: where the results are, and what can be typed next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.text import Text

from trompe.cli.app import console
from trompe.cli.reading import default_out
from trompe.config import Config, EvaluateConfig, ExplainConfig, FoolConfig, TrainConfig
from trompe.objectives import OBJECTIVES


def show_next(results: str, steps: dict[str, str], *, quiet: bool) -> None:
    """Print where the results are and, unless ``quiet``, commands with what they are for."""
    console.print(Text(results), soft_wrap=True)
    if quiet:
        return
    console.print("[bold]Next[/]")
    for why, command in steps.items():
        console.print(Text(f"  {why}:"), soft_wrap=True)
        console.print(Text(f"    {command}", style="cyan"), soft_wrap=True)


def after_fool(config: FoolConfig, out: Path) -> dict[str, str]:
    """Judge by other explainers; another objective; without a control, one."""
    passive = (name for name, kind in OBJECTIVES.items() if not kind.on_composites)
    other = next((name for name in passive if name not in config.objective), None)
    again = {"config": out / "config.yaml"}
    steps = {}
    if other:
        steps["another objective, all else the same"] = _command(
            "fool", **again, objective=other, out=default_out("fool", config.model, other)
        )
    if config.eval_data is not None:
        steps = {
            "judge it by other explainers": _command(
                "evaluate",
                **_model(config),
                manipulated=out,
                data=config.eval_data,
                limit=config.eval_limit,
                objective=config.objective,
                explainer=["lrp", "integrated-gradients"],
                out=f"{out}-evaluated",
            )
        } | steps
    else:
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
    return steps


def after_train(config: TrainConfig, out: Path) -> dict[str, str]:
    """Fool the trained model; look at its heatmaps."""
    model = {**_model(config), "weights": out / "weights.safetensors"}
    data = {"data": config.data, "eval_data": config.eval_data}
    return {
        "fool it": _command("fool", **model, **data, steps=300, lr=1e-4, schedule="one-cycle"),
        "look at its heatmaps": _command("explain", **model, images="FOLDER", explainer="grad-cam"),
    }


def after_evaluate(config: EvaluateConfig, out: Path) -> dict[str, str]:
    """Look at one image under the manipulated model."""
    weights = Path(config.manipulated)
    weights = weights / "weights.safetensors" if weights.is_dir() else weights
    return {
        "look at images of your own": _command(
            "explain",
            **{**_model(config), "weights": weights},
            images="FOLDER",
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


def _command(name: str, **options: Any) -> str:
    words = ["trompe", name]
    for key, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [] if one is None else [f"--{key.replace('_', '-')}", str(one)]
    return shlex.join(words)
