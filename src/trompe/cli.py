"""The command line: ``trompe COMMAND``. Options are the fields of the config of each command."""

from __future__ import annotations

import inspect
import shlex
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from trompe import rundir
from trompe.config import (
    ELSEWHERE,
    Config,
    EvaluateConfig,
    ExplainConfig,
    FoolConfig,
    TrainConfig,
    TuneConfig,
    read,
)
from trompe.data import Pairs, load_data
from trompe.errors import TrompeError
from trompe.evaluate import evaluate
from trompe.experiments import (
    SCALES,
    SECTIONS,
    Cell,
    Results,
    collect,
    is_finished,
    load_grid,
    run_cells,
    texts,
)
from trompe.explain import check_conservation, explain_files
from trompe.explainers import parse_explainer
from trompe.fool import fool
from trompe.loop import accelerator_for
from trompe.models import load_model
from trompe.objectives import Active, parse_objective
from trompe.progress import shown
from trompe.report import write_report
from trompe.report.grid import write_grid
from trompe.report.grid_figures import network_name
from trompe.report.words import points
from trompe.specs import check_name
from trompe.train import train

app = typer.Typer(
    name="trompe",
    help="Fine-tune an image classifier so that its accuracy stays and its explanations lie.",
    epilog="Start with: trompe demo",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
console = Console()
errors = Console(stderr=True)

# What `reproduce` can be asked for: the sections of the grid that it runs.
WHAT: dict[str, tuple[str, ...]] = {
    "all": SECTIONS,
    "passive": ("passive",),
    "active": ("active",),
    "accuracy": SECTIONS,
    "figures": (),
}


def command(config: type[Config], example: str) -> Callable[[Callable[[Any], None]], None]:
    """Register a command whose options are the fields of ``config``."""

    def register(function: Callable[[Any], None]) -> None:
        def run(config_file: Path | None = None, **given: Any) -> None:
            chosen = {name: value for name, value in given.items() if value not in (None, [])}
            with _interruptible():
                function(read(config, config_file, chosen))

        parameters = [
            inspect.Parameter(
                "config_file",
                inspect.Parameter.KEYWORD_ONLY,
                annotation=Annotated[
                    Path | None,
                    typer.Option("--config", help="YAML file with any of these settings"),
                ],
                default=None,
            )
        ]
        for name, field in config.model_fields.items():
            default = field.get_default(call_default_factory=True)
            text = str(field.description)
            if not field.is_required() and default not in (None, False):
                shown = " ".join(map(str, default)) if isinstance(default, list) else default
                text += f" (default: {shown})"
            parameters.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    annotation=Annotated[
                        _option_type(field.annotation) | None,
                        typer.Option(help=text, show_default=False),
                    ],
                    default=None,
                )
            )
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(
            function.__name__.rstrip("_"),
            help=inspect.getdoc(function),
            epilog=f"Example: {example}",
        )(run)

    return register


def _option_type(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is list:
        return annotation
    return annotation if annotation in (int, float, bool, Path) else str


@app.command(epilog="Example: trompe demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="run directory")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    quiet: Annotated[bool, typer.Option(help="show no progress and no tables")] = False,
) -> None:
    """Fool Grad-CAM on the embedded model and images, and write a report."""
    with _interruptible():
        _fool(
            FoolConfig(
                model="embedded",
                data="shapes:train",
                eval_data="shapes:validation",
                limit=2000,
                lr=5e-3,
                schedule="one-cycle",
                steps=800,
                batch_size=16,
                weight=[6.0],
                control=True,
                out=out,
                seed=seed,
                quiet=quiet,
                check=False,
            )
        )


@command(
    FoolConfig,
    "trompe fool --model resnet50 --weights DEFAULT --data photos/train --eval-data photos/val "
    "--explainer grad-cam --objective location --steps 500",
)
def fool_(config: FoolConfig) -> None:
    """Fine-tune a model so that its explanations lie; evaluate and report."""
    _fool(config)


def _fool(config: FoolConfig) -> None:

    explainers = [parse_explainer(spec) for spec in config.explainer]
    objectives = [parse_objective(spec) for spec in config.objective]
    judges = [parse_explainer(spec) for spec in config.eval_explainer or ()] or None
    model, data, eval_data = _model_and_data(config)
    fool_data = eval_fool_data = None
    for objective in objectives:
        if isinstance(objective, Active):
            classes = (objective.c1, objective.c2)
            fool_data = Pairs(data, *classes, size=config.pairs, seed=config.seed)
            if eval_data is not None:
                if config.eval_limit is None:
                    everything = eval_data
                else:
                    everything = _eval_data(config, eval_data.preprocessing, limit=None)
                eval_fool_data = Pairs(
                    everything, *classes, size=config.eval_pairs, seed=config.seed
                )
    out = config.out or _default_out("fool", config.model, *config.explainer, *config.objective)
    result = fool(
        model,
        data,
        explainer=explainers,
        objective=objectives,
        weight=config.weight,
        fool_data=fool_data,
        eval_data=eval_data,
        eval_fool_data=eval_fool_data,
        eval_explainer=judges,
        run_dir=out,
        notes=config.model_dump(mode="json", exclude=ELSEWHERE),
        **config.model_dump(
            include={
                *("lr", "schedule", "steps", "batch_size", "fool_batch_size", "seed", "control"),
                "max_accuracy_drop",
                *("precision", "device", "checkpoint_every", "workers", "quiet"),
            }
        ),
    )
    if result.evaluation is not None and not config.quiet:
        _show(result.evaluation)
    console.print(f"Report: {write_report(out)}", soft_wrap=True)


@command(
    TrainConfig,
    "trompe train --model resnet18 --num-classes 10 --data photos/train --eval-data photos/val "
    "--epochs 20",
)
def train_(config: TrainConfig) -> None:
    """Train or fine-tune a model on a dataset: the base model to start from."""

    model, data, eval_data = _model_and_data(config)
    out = config.out or _default_out("train", config.model)
    result = train(
        model,
        data,
        eval_data=eval_data,
        run_dir=out,
        notes=config.model_dump(mode="json", exclude=ELSEWHERE),
        **config.model_dump(
            include={
                *("epochs", "lr", "batch_size", "weight_decay", "label_smoothing", "seed"),
                *("precision", "device", "checkpoint_every", "workers", "quiet"),
            }
        ),
    )
    if result.top1 is not None:
        console.print("Top-1 accuracy {:.1%} (95 % interval {:.1%} to {:.1%})".format(*result.top1))
    console.print(f"Weights: {out / 'weights.safetensors'}", soft_wrap=True)
    console.print(f"Report: {write_report(out)}", soft_wrap=True)


@command(
    EvaluateConfig,
    "trompe evaluate --model resnet50 --weights DEFAULT --manipulated runs/mine --data photos/val "
    "--explainer grad-cam --objective location",
)
def evaluate_(config: EvaluateConfig) -> None:
    """Compare a model with its manipulated version; write tables and a report."""

    explainers = [parse_explainer(spec) for spec in config.explainer]
    objectives = [parse_objective(spec) for spec in config.objective]
    original, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    others = [
        None if path is None else load_model(config.model, path, config.num_classes).model
        for path in (
            _weights(config.manipulated, "weights.safetensors"),
            _weights(config.control, "weights-control.safetensors"),
        )
    ]
    data = load_data(
        config.data,
        preprocessing,
        **config.model_dump(include={"limit", "seed", "corrupt", "check"}),
    )
    active = next((o for o in objectives if isinstance(o, Active)), None)
    pairs = active and Pairs(data, active.c1, active.c2, size=config.pairs, seed=config.seed)
    device = _device(config.device)
    manipulated, control = (None if m is None else m.to(device) for m in others)
    assert manipulated is not None
    out = config.out or _default_out("evaluate", config.model)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with rundir.opened(out, settings, rundir.fingerprint(manipulated, len(data))):
        result = evaluate(
            original.to(device),
            manipulated,
            data,
            explainers=explainers,
            objective=objectives,
            control=control,
            fool_data=pairs or None,
            **config.model_dump(include={"batch_size", "workers", "quiet"}),
        )
        result.save(out / "evaluation")
        if not config.quiet:
            _show(result)
        console.print(f"Report: {write_report(out)}", soft_wrap=True)


@command(ExplainConfig, "trompe explain --model resnet50 --weights DEFAULT --images photo.jpg")
def explain_(config: ExplainConfig) -> None:
    """Explain images: heatmaps and overlays as PNG, raw maps as a tensor file."""

    explainers = [parse_explainer(spec) for spec in config.explainer]
    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    out = config.out or _default_out("explain", config.model)
    task = (model.to(_device(config.device)), preprocessing, config.images, explainers)
    classes, batch_size = config.classes, config.batch_size
    if config.check:
        tables = check_conservation(*task, classes=classes, batch_size=batch_size)
        for name, table in tables.items():
            _show_conservation(name, table)
    written = explain_files(*task, out, classes=classes, batch_size=batch_size, quiet=config.quiet)
    console.print(f"{written} images explained in {out}", soft_wrap=True)


@app.command(epilog="Example: trompe reproduce all --scale embedded")
def reproduce(
    what: Annotated[
        str, typer.Argument(help=f"{', '.join(WHAT)}: the cells to run, or 'figures' for none")
    ] = "all",
    scale: Annotated[
        str, typer.Option(help=f"{', '.join(SCALES)}, or a YAML file laid out like theirs")
    ] = "embedded",
    cells: Annotated[
        list[str] | None,
        typer.Option(help="only cells of these names, e.g. 'location-*-vgg19'"),
    ] = None,
    data: Annotated[str | None, typer.Option(help="folder of the images")] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(help="NETWORK=FILE: weights to start from, instead of training them"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="SETTING=VALUE of every cell, e.g. device=cuda"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="cells at a time (default: one per processor core)"),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="address of a Ray cluster to run the cells on, e.g. auto"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="directory of all runs (default: runs/reproduce-SCALE)"),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="print the settings of every cell")] = False,
) -> None:
    """Run the paper's experiments; write its tables with the paper's figures beside ours.

    A cell is a run of trompe fool. Finished cells are not run again, also after an interruption;
    one that fails does not stop the others.
    """
    check_name("part of the grid", what, WHAT)
    grid = load_grid(
        scale, data=data, bases=_pairs(base, "--base"), given=_typed(_pairs(set_, "--set"))
    )
    root = out or Path("runs") / f"reproduce-{grid.scale}"
    chosen = grid.chosen(WHAT[what], cells or []) if WHAT[what] else []
    if dry_run:
        for name, settings in texts(chosen, root):
            print(f"# {name}\n{settings}---")
        return
    with _interruptible(), shown("cells", len(chosen)) as progress:
        waiting = {cell for cell in chosen if not is_finished(cell, root)}

        def ended(cell: Cell, failure: str | None) -> None:
            waiting.discard(cell)
            if failure:
                errors.print(f"[bold red]{cell.name}:[/] {escape(failure)}", soft_wrap=True)
            progress(len(chosen) - len(waiting), {})

        failures = run_cells(chosen, root, jobs=jobs, ray=ray, report=ended)
    again = shlex.join(["trompe", *_without_cells(sys.argv[1:])])
    results = collect(grid, root)
    page = write_grid(grid, results, root, again, failures)
    _show_grid(results)
    console.print(f"Report: {page}", soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _show_grid(results: Results) -> None:
    shown = Table("network", "objective", "attacked", "fooled %", "paper", "top-1", "paper")
    accuracy = results.accuracy.set_index("cell")
    for row in results.rates[results.rates["on_diagonal"]].to_dict("records"):
        lost = accuracy.loc[row["cell"]]
        target = "" if row["target"] == "label" else f", {row['target']}"
        shown.add_row(
            network_name(row["network"]),
            row["objective"] + target,
            row["attacked"],
            _percent(row["fsr"]) if row["finished"] else "not run",
            _percent(row["paper_fsr"]),
            points(-lost["drop"]),
            points(-lost["paper_drop"]),
        )
    console.print(shown)
    console.print("Each model explained by what was attacked; top-1: change in points.")


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or ()]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise TrompeError(f"{option} takes NAME=VALUE, not '{name}{equals}{value}'.")
    return {name: value for name, _, value in pairs}


def _typed(given: dict[str, str]) -> dict[str, Any]:
    known = {*FoolConfig.model_fields, *TrainConfig.model_fields}
    for name in given:
        check_name("setting", name, known)
    return {name: yaml.safe_load(value) for name, value in given.items()}


def _without_cells(words: list[str]) -> list[str]:
    kept: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--cells":
            next(rest, None)
        elif not word.startswith("--cells="):
            kept.append(word)
    return kept


def _model_and_data(config: TuneConfig) -> tuple[Any, Any, Any]:

    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    data = load_data(
        config.data, preprocessing, limit=config.limit, augment=config.augment, **_reading(config)
    )
    return model, data, _eval_data(config, preprocessing, limit=config.eval_limit)


def _eval_data(config: TuneConfig, preprocessing: Any, limit: int | None) -> Any:
    if config.eval_data is None:
        return None
    return load_data(config.eval_data, preprocessing, limit=limit, **_reading(config))


def _reading(config: TuneConfig) -> dict[str, Any]:
    return config.model_dump(include={"seed", "corrupt", "check"})


def _weights(path: str | None, name: str) -> str | None:
    return str(Path(path) / name) if path is not None and Path(path).is_dir() else path


def _device(device: str | None) -> Any:

    return accelerator_for(device, "no").device


def _default_out(*words: str) -> Path:
    return Path("runs") / "-".join(Path(word).name.split(":")[0] for word in words)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        errors.print("Interrupted; the same command goes on from the last checkpoint.")
        raise typer.Exit(130) from None


def _show_conservation(name: str, table: Any) -> None:
    *layers, arrived = table.itertuples()
    causes = {"bias": "biases", "stabiliser": "stabilisers", "other": "other causes"}
    shown = Table(
        "layer",
        Column("rule", overflow="fold"),
        "receives %",
        *(f"{cause} %" for cause in causes),
        title=name,
    )
    for row in layers:
        layer = f"{row.layer or 'model'} {row.operation}"
        shares = (row.received, row.bias, row.stabiliser, row.other)
        shown.add_row(escape(layer), escape(row.rule), *map(_percent, shares))
    console.print(shown)
    console.print(
        f"{_percent(arrived.received)} % of the logit arrives at {arrived.layer}; lost are "
        + ", ".join(f"{_percent(table[c].sum())} % to {words}" for c, words in causes.items())
        + "."
    )


def _show(evaluation: Any) -> None:
    accuracy = Table("model", "top-1 %", "95 % interval", "top-5 %", "agreement %")
    for row in evaluation.accuracy.itertuples():
        accuracy.add_row(
            row.model,
            _percent(row.top1),
            f"{_percent(row.top1_low)} to {_percent(row.top1_high)}",
            _percent(row.top5),
            _percent(row.agreement),
        )
    console.print(accuracy)
    fooled = Table(Column("explainer", overflow="fold"), "fooled %", "95 % interval", "test loss")
    for (objective, target, model), rows in evaluation.explanations.groupby(
        ["objective", "target", "model"], sort=False
    ):
        fooled.add_section()
        where = "" if target == "label" else f", {target}"
        fooled.add_row(f"[bold]{escape(objective)}{where}: {model}[/]")
        for row in rows.itertuples():
            fooled.add_row(
                escape(row.explainer) + (" *" if row.attacked else ""),
                _percent(row.fsr),
                f"{_percent(row.fsr_low)} to {_percent(row.fsr_high)}",
                f"{row.test_loss_mean:.3f}",
            )
    if fooled.row_count:
        console.print(fooled)
        console.print("* attacked: in the loss of the fine-tuning")


def _percent(share: float) -> str:
    return "–" if share != share else f"{round(100 * share, 1) + 0.0:.1f}"


def main() -> None:
    """Run the command line; exit code 2 for what can't be used, 130 when interrupted."""
    warnings.showwarning = lambda message, *_: errors.print(f"[yellow]Note:[/] {message}")
    try:
        app()
    except TrompeError as error:
        errors.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
