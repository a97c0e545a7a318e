"""``trompe explain``."""

from __future__ import annotations

from typing import Any

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.cli.app import command
from trompe.cli.jobs import ExplainJob
from trompe.cli.next_steps import after_explain, show_next
from trompe.cli.reading import default_out, device_for
from trompe.cli.tables import show_conservation
from trompe.errors import TrompeError
from trompe.explain import Photographs, check_conservation, explain_files
from trompe.explainers import parse_explainer
from trompe.explainers.targets import Class
from trompe.explainers.targets import read as read_target
from trompe.models import load_model
from trompe.tuning.recipe import ELSEWHERE

HERE = ELSEWHERE | {"batch_size", "check"}  # settings that do not change what is written


@command(
    ExplainJob,
    "trompe explain --model resnet50 --weights DEFAULT --images photo.jpg",
    "trompe explain --model resnet50 --weights DEFAULT --images photos --classes 281 \\\n"
    "--explainer grad-cam --explainer lrp:composite=epsilon-plus --check",
    "trompe explain --model resnet50 --weights DEFAULT --images photos \\\n"
    "--target difference:of=281,against=282",
)
def explain_(config: ExplainJob) -> None:
    """Explain images: heatmaps and overlays as PNG, raw maps as a tensor file, a table as CSV."""

    explainers = [parse_explainer(spec) for spec in config.explainer]
    target = read_target(config.target)
    if config.classes is not None:
        if config.target != "predicted":
            raise TrompeError("--target and --classes both say what is explained; give one.")
        target = Class(config.classes)
    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    data = Photographs(config.images, preprocessing, config.corrupt)
    out = config.out or default_out("explain", config.model)
    task = (model.to(device_for(config.device)), data, explainers)
    options: dict[str, Any] = {"classes": target, "batch_size": config.batch_size}
    if config.check:
        for name, table in check_conservation(*task, **options).items():
            show_conservation(name, table)
    settings = config.model_dump(mode="json", exclude=HERE)
    with runs.opened(
        out,
        settings,
        {
            "weights": fingerprint(model),
            "images": data.fingerprint,
            "target": fingerprint(target),
        },
    ):
        explain_files(*task, out, **options, quiet=config.quiet)
    show_next(
        f"{len(data)} images explained in {out}", after_explain(config, out), quiet=config.quiet
    )
