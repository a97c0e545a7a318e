"""``trompe explain``."""

from __future__ import annotations

from trompe.cli.app import command
from trompe.cli.jobs import ExplainJob
from trompe.cli.next_steps import after_explain, show_next
from trompe.cli.reading import default_out, device_for
from trompe.cli.tables import show_conservation
from trompe.explain import check_conservation, explain_files
from trompe.explainers import parse_explainer
from trompe.models import load_model


@command(
    ExplainJob,
    "trompe explain --model resnet50 --weights DEFAULT --images photo.jpg",
    "trompe explain --model resnet50 --weights DEFAULT --images photos --classes 281 \\\n"
    "--explainer grad-cam --explainer lrp:composite=epsilon-plus --check",
)
def explain_(config: ExplainJob) -> None:
    """Explain images: heatmaps and overlays as PNG, raw maps as a tensor file."""

    explainers = [parse_explainer(spec) for spec in config.explainer]
    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    out = config.out or default_out("explain", config.model)
    task = (model.to(device_for(config.device)), preprocessing, config.images, explainers)
    classes, batch_size = config.classes, config.batch_size
    if config.check:
        tables = check_conservation(*task, classes=classes, batch_size=batch_size)
        for name, table in tables.items():
            show_conservation(name, table)
    written = explain_files(*task, out, classes=classes, batch_size=batch_size, quiet=config.quiet)
    show_next(
        f"{written} images explained in {out}", after_explain(config, out), quiet=config.quiet
    )
