"""``trompe evaluate``."""

from __future__ import annotations

from functools import partial

from trompe import runs
from trompe.base import processes
from trompe.base.identity import fingerprint
from trompe.cli.app import command
from trompe.cli.jobs import EvaluateJob
from trompe.cli.next_steps import after_evaluate, show_next
from trompe.cli.reading import default_out, device_for, weights_in
from trompe.cli.tables import show_evaluation
from trompe.data.images import fingerprint_of
from trompe.evaluation import Evaluation, evaluate
from trompe.explainers import parse_explainer
from trompe.explainers.targets import read as read_target
from trompe.models import load_model
from trompe.report import write_report
from trompe.tuning.recipe import ELSEWHERE


@command(
    EvaluateJob,
    "trompe evaluate --model embedded --manipulated runs/demo --data shapes:validation \\\n"
    "--explainer lrp --explainer integrated-gradients",
    "trompe evaluate --model resnet50 --weights DEFAULT --manipulated runs/mine \\\n"
    "--data photos/val --explainer captum:method=InputXGradient --objective location",
)
def evaluate_(config: EvaluateJob) -> None:
    """Compare a model with its manipulated version; write tables and a report."""

    explainers = [parse_explainer(spec) for spec in config.explainer]
    objectives = config.judged
    target = read_target(config.target)
    original, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    others = [
        None if path is None else load_model(config.model, path, config.num_classes).model
        for path in (
            weights_in(config.manipulated, "weights.safetensors"),
            weights_in(config.control, "weights-control.safetensors"),
        )
    ]
    # The same images and composites whatever the seed, as `fool` judges by.
    data = config.read_data(config.data, preprocessing, config.limit, seed=0)
    composed = [objective for objective in objectives if objective.on_composites]
    everything = data
    if composed and config.limit is not None:
        everything = config.read_data(config.data, preprocessing, seed=0)
    fool_data = {o: o.composites(everything, config.pairs) for o in composed}
    device = device_for(config.device)
    manipulated, control = (None if m is None else m.to(device) for m in others)
    assert manipulated is not None
    out = config.out or default_out("evaluate", config.model)
    settings = config.model_dump(mode="json", exclude=ELSEWHERE)
    with runs.opened(
        out,
        settings,
        {
            "weights": fingerprint(original, manipulated, control),
            "data": fingerprint_of(data),
            "explainers or objectives": fingerprint(explainers, objectives),
            "target": fingerprint(target),
        },
    ):
        compared = partial(
            evaluate,
            original.to(device),
            manipulated,
            data,
            explainers=explainers,
            objective=objectives,
            target=target,
            control=control,
            fool_data=fool_data,
            **config.model_dump(include={"batch_size", "gallery", "workers", "quiet"}),
        )
        result = runs.part(out, "evaluation", compared, Evaluation.load)
        if processes.is_main():
            if not config.quiet:
                show_evaluation(result)
            steps = after_evaluate(config, out)
            show_next(f"Report: {write_report(out)}", steps, quiet=config.quiet)
