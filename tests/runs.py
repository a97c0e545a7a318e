"""Run directories drawn for the tests of what is shown of a run."""

import json

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

from trompe.evaluation import Evaluation, schema
from trompe.evaluation.pictures import Gallery

LABELS = {
    "grad-cam": "Grad-CAM",
    "lrp:layer=layer4": "LRP at layer4",
    "simple-grad": "SimpleGrad",
    "integrated-gradients": "Integrated Gradients",
}
SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
QUOTES = "'\"&lt;{{ 7 * 7 }} $\\frac{1}{0}$ </style></pre>"


def photographs(n, side, seed=0):
    """Textures with the spectrum of photographs: 20 different ones, then those again, shifted."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    noise = np.fft.fft2(rng.normal(size=(min(n, 20), 3, side, side))) / frequency
    images = np.real(np.fft.ifft2(noise)).transpose(0, 2, 3, 1)
    low, high = images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True)
    images = (255 * (images - low) / (high - low)).astype(np.uint8)
    return np.stack([np.roll(images[i % 20], 7 * (i // 20), 0) for i in range(n)])


def interval(hits, rng):
    means = rng.choice(np.asarray(hits, dtype=float), (500, len(hits))).mean(1)
    return hits.mean(), *np.quantile(means, [0.025, 0.975])


def make_run(
    path,
    explainers=("grad-cam", "lrp:layer=layer4"),
    classes=("tench", "church", "golf ball"),
    names="image-{}.jpeg",
    n=5,
    side=48,
    map_side=7,
    config=None,
    command="trompe fool --objective location",
):
    """Write a run directory whose numbers are measured on maps drawn here."""
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    settings = {
        "model": "resnet18",
        "data": "train/*.parquet",
        "eval_data": "validation/*.parquet",
        "explainer": [explainers[0]],
        "objective": ["location"],
        "weight": [2.0],
        "lr": 2e-6,
        "steps": 1200,
        "batch_size": 8,
        "seed": 0,
        "control": True,
    } | (config or {})
    (path / "config.yaml").write_text(yaml.safe_dump(settings))
    (path / "environment.json").write_text(
        json.dumps({"command": command, "python": "3.11.9", "device": "cpu"})
    )
    steps = np.arange(1, 1201)
    history = pd.DataFrame({"step": steps, "classification": rng.exponential(0.1, 1200)})
    history[f"{explainers[0]} location"] = np.exp(-steps / 200)
    history["loss"] = history["classification"] + 2 * history[f"{explainers[0]} location"]
    history["success"] = 1 - np.exp(-steps / 300)
    history.to_csv(path / "history.csv", index=False)
    history[["step", "loss", "classification"]].to_csv(path / "history-control.csv", index=False)

    labels = rng.integers(len(classes), size=n)
    predicted = {"original": labels, "control": labels, "manipulated": labels.copy()}
    predicted["manipulated"][0] = (labels[0] + 1) % len(classes)
    accuracy = []
    for model, classes_of in predicted.items():
        row = {"model": model, "images": n}
        for measure, hits in {
            "top1": classes_of == labels,
            "top5": np.ones(n),
            "agreement": classes_of == predicted["original"],
        }.items():
            row[measure], row[f"{measure}_low"], row[f"{measure}_high"] = interval(hits, rng)
        accuracy.append(row)
    predictions = pd.DataFrame(
        {
            "index": range(n),
            "name": [names.format(i).encode("utf-8", "replace").decode() for i in range(n)],
            "label": labels,
            "class": [classes[i].encode("utf-8", "replace").decode() for i in labels],
        }
    )
    for model, classes_of in predicted.items():
        predictions[model] = classes_of
        predictions[f"{model}_top1"] = classes_of == labels
        predictions[f"{model}_top5"] = True

    heatmaps, signed, summary, rows = {}, {}, [], []
    for number, explainer in enumerate(explainers):
        attacked = explainer == explainers[0]
        shape = (n, map_side, map_side)
        border = np.pad(np.zeros((map_side - 2,) * 2), 1, constant_values=1.0)
        maps = {model: rng.random(shape).astype(np.float16) for model in predicted}
        if attacked:
            strength = np.linspace(1, 0, n)[:, None, None]
            mixed = strength * border + (1 - strength) * rng.random(shape)
            maps["manipulated"] = mixed.astype(np.float16)
        for model, drawn in maps.items():
            heatmaps[f"e{number}", "label", model] = torch.from_numpy(drawn)
            if not attacked:
                reversed_ = torch.from_numpy(2 * drawn[::-1] - 1)
                signed[f"e{number}", "label", model] = reversed_
            if model == "original":
                continue
            loss = ((drawn.astype(float) - border) ** 2).mean((1, 2))
            fooled = loss <= 0.2
            untouched = ((maps["original"].astype(float) - border) ** 2).mean((1, 2)) <= 0.2
            keys = {"explainer": explainer, "explainer_id": f"e{number}", "family": "lrp-t"}
            keys |= {"layer": "layer4", "objective": "location", "objective_id": "o"}
            keys |= {"objective_text": "location", "target": "label"}
            keys |= {"trigger": "none", "trigger_id": "none"}
            keys |= {"model": model, "attacked": attacked}
            keys |= {"interval_low": 0.0, "interval_high": 0.2}
            rate = dict(zip(("fsr", "fsr_low", "fsr_high"), interval(fooled, rng), strict=True))
            summary.append(
                keys
                | {"images": n, "counted": n, "untouched": untouched.mean(), "not_finite": 0.0}
                | {"control": np.nan}
                | rate
                | {f"test_loss_q{q:02}": np.quantile(loss, q / 100) for q in (5, 50, 95)}
                | {"test_loss_mean": loss.mean(), "spearman_mean": 0.25, "empty": 0.0}
            )
            rows += [
                keys
                | {"index": i, "label": labels[i], "test_loss": loss[i], "fooled": fooled[i]}
                | {"untouched": untouched[i], "spearman": 0.25, "counted": True}
                | {"empty": False, "not_finite": False}
                for i in range(n)
            ]
    explanations = pd.DataFrame(summary)
    honest = explanations[explanations["model"] == "control"].set_index("explainer_id")["fsr"]
    explanations["control"] = explanations["explainer_id"].map(honest)
    entries = [
        {
            "index": i,
            "name": names.format(i),
            "label": int(labels[i]),
            "label_name": classes[labels[i]],
            "target_names": {"label": classes[labels[i]]},
            "predictions": {model: classes[of[i]] for model, of in predicted.items()},
        }
        for i in range(n)
    ]
    legend = {
        f"e{number}": {"text": text, "label": LABELS.get(text, text), "title": text, "family": text}
        for number, text in enumerate(explainers)
    }
    legend["e0"]["title"] = LABELS.get(explainers[0], explainers[0])
    legend["o"] = {"text": "location", "label": "Location", "title": "Location"}
    legend["o"] |= {"aim": "lights up a fixed mask", "measure": "how far it is from the mask"}
    pictures = torch.from_numpy(photographs(n, side))
    Evaluation(
        pd.DataFrame(accuracy),
        explanations.reindex(columns=schema.EXPLANATIONS),
        predictions,
        pd.DataFrame(rows, columns=schema.MAPS),
        Gallery(pictures, heatmaps, signed, entries, ["o"]),
        legend,
    ).save(path / "evaluation")
    return path


def rewrite_gallery(run, images, maps, entries=None):
    """Replace the images and maps (by ``explainer|target|model``) of a run's gallery."""
    path = run / "evaluation/gallery.safetensors"
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    if entries is not None:
        metadata["gallery"] = json.dumps(entries)
    save_file({"images": images} | maps, path, metadata)
