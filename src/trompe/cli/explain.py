"""``trompe explain``."""

from __future__ import annotations

from trompe import runs
from trompe.base.identity import fingerprint
from trompe.cli.app import command
from trompe.cli.jobs import ExplainJob
from trompe.cli.next_steps import after_explain, show_next
from trompe.cli.reading import default_out, device_for
from trompe.cli.tables import show_conservation
from trompe.explain import Photographs, check_conservation, explain_files
from trompe.explainers import parse_explainer
from trompe.models import load_model
from trompe.tuning.recipe import ELSEWHERE

HERE = ELSEWHERE | {"batch_size", "check"}  # settings that do not change what is written


@command(
    ExplainJob,
    "trompe explain --model resnet50 --weights DEFAULT --images photo.jpg",
    "trompe explain --model resnet50 --weights DEFAULT --images photos --classes 281 \\\n"
    "--explainer grad-cam --explainer lrp:composite=epsilon-plus --check",
)
def explain_(config: ExplainJob) -> None:
    """Explain images: heatmaps and overlays as PNG, raw maps as a tensor file, a table as CSV."""

    explainers = [parse_explainer(spec) for spec in config.explainer]
    model, preprocessing = load_model(
        config.model, config.weights, config.num_classes, seed=config.seed
    )
    data = Photographs(config.images, preprocessing, config.corrupt)
    out = config.out or default_out("explain", config.model)
    task = (model.to(device_for(config.device)), data, explainers)
    options = config.model_dump(include={"classes", "batch_size"})
    if config.check:
        for name, table in check_conservation(*task, **options).items():
            show_conservation(name, table)
    settings = config.model_dump(mode="json", exclude=HERE)
    with runs.opened(
        out, settings, {"weights": fingerprint(model), "images": fingerprint(data.found.files)}
    ):
        written = explain_files(*task, out, **options, quiet=config.quiet)
    images = written["name"].nunique()
    show_next(f"{images} images explained in {out}", after_explain(config, out), quiet=config.quiet)
