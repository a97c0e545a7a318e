"""The tables of the pages in docs/results, made from the rows beside them.

    python docs/results/tables.py

A page has `<!-- table NAME -->` where a table begins and `<!-- end -->` where it ends. What is
between them is replaced, and everything else stays.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
OBJECTIVES = ("location", "top-k", "center-mass", "active")
EXPLAINERS = {
    "grad-cam": "Grad-CAM",
    "lrp-t": "LRP_T",
    "lrp": "LRP",
    "simple-grad": "SimpleGrad",
    "simple-grad-t": "SimpleGrad_T",
}
_TABLE = re.compile(r"(<!-- table (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLES: dict[str, tuple[str, Callable[[], Iterator[list[str]]]]] = {}


def pages() -> dict[Path, str]:
    """Every page that has a table, as it should be."""
    found = {path: path.read_text() for path in sorted(HERE.rglob("*.md"))}
    return {path: _filled(text) for path, text in found.items() if _TABLE.search(text)}


def _filled(text: str) -> str:
    return _TABLE.sub(lambda found: f"{found[1]}\n{markdown(found[2])}\n{found[3]}", text)


def markdown(name: str) -> str:
    """A table in Markdown."""
    head, rows = TABLES[name]
    rule = ["---"] * len(head.split(" | "))
    return "".join(f"| {' | '.join(row)} |\n" for row in ([head], rule, *rows()))


def read(name: str) -> pd.DataFrame:
    """The rows of a file in this directory, texts that are empty as such."""
    rows = pd.read_csv(HERE / name)
    texts = rows.select_dtypes(exclude="number").columns
    return rows.assign(**{name: rows[name].fillna("") for name in texts})


def table(name: str, head: str) -> Callable[[Callable[[], Iterator[list[str]]]], None]:
    """Let a function make the rows of the table of this name."""
    return lambda make: TABLES.update({name: (head, make)})


def percent(share: float, digits: int = 1) -> str:
    """A share as a percentage without the sign."""
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}"


def rate(row: pd.Series, name: str, digits: int = 1) -> str:
    """A share with its interval, as percentages; without one, where there is none."""
    low, high = (row.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
    span = "" if math.isnan(low) else f" ({percent(low, digits)} to {percent(high, digits)})"
    return percent(row[name], digits) + span


def points(change: float) -> str:
    """A difference of shares in percentage points, always with a sign."""
    return "–" if math.isnan(change) else f"{100 * change + 0:+.1f}"


def explainer(name: str) -> str:
    """What an explainer is called in a table."""
    return EXPLAINERS.get(name, name)


def aim(row: pd.Series) -> str:
    """The objective, for active fooling with the class."""
    return row["objective"] + (f", {row['target']}" if row["objective"] == "active" else "")


@table("demo accuracy", "model | top-1 % | agrees with the original %")
def _() -> Iterator[list[str]]:
    for _, row in read("demo-accuracy.csv").iterrows():
        yield [row["model"], rate(row, "top1"), percent(row["agreement"])]


@table("demo rates", "explainer | fooled % | control % | mean test loss")
def _() -> Iterator[list[str]]:
    for _, row in read("demo-rates.csv").iterrows():
        name = f"{explainer(row['explainer'])} at `{row['layer']}`"
        name += ", attacked" if row["attacked"] else ""
        yield [name, rate(row, "fsr"), percent(row["control"]), f"{row['test_loss']:.3f}"]


def _setting(row: pd.Series) -> str:
    names = [row["objective"], row["target"]]
    written = (("margin", "margin {:g}"), ("weight", "{:g}"), ("steps", "{:,.0f}"))
    names += [how.format(row[name]) for name, how in written if not math.isnan(row[name])]
    return ", ".join(filter(None, names))


def _transfer(row: pd.Series) -> str:
    found = {name: row[f"fsr_{name}"] for name in EXPLAINERS}
    known = sorted(((v, n) for n, v in found.items() if not math.isnan(v)), key=lambda p: -p[0])
    at = {"lrp": "LRP at the input"}
    return ", ".join(f"{at.get(name, explainer(name))} {percent(v)}" for v, name in known)


def _accuracy(row: pd.Series, change: str) -> list[str]:
    if row["same_model"]:
        return ["the same model", ""]
    return [rate(row, "top1"), percent(row[change])]


def _small(row: pd.Series) -> list[str]:
    return [
        _setting(row),
        rate(row, "fsr"),
        percent(row["control"]),
        *_accuracy(row, "below_control"),
    ]


def _grid(row: pd.Series) -> list[str]:
    setting = _setting(row) + (f" ({row['note']})" if row["note"] else "")
    return [setting, rate(row, "fsr"), _transfer(row), *_accuracy(row, "below_original")]


def _attacked(row: pd.Series) -> list[str]:
    setting, *cells = _grid(row)
    return [f"{explainer(row['attacked'])}: {setting}", *cells]


SMALL = "objective, λ | fooled % | control % | top-1 % | below the control"
GRID = "fooled % | transfer | top-1 % | below the original"
PHOTOGRAPHS = {
    "resnet18": (SMALL, _small),
    "unseen": (SMALL, _small),
    "margins": (f"attacked: objective, margin, λ, steps | {GRID}", _attacked),
    "before margins": (f"objective, λ, steps | {GRID}", _grid),
}


def _photographs(part: str) -> Iterator[list[str]]:
    for _, row in read("photographs.csv").query("part == @part").iterrows():
        yield PHOTOGRAPHS[part][1](row)


for _part, (_head, _) in PHOTOGRAPHS.items():
    table(f"photographs {_part}", _head)(partial(_photographs, _part))


@table(
    "embedded",
    "family | objective | attacked | fooled % | empty % | control % | paper % | "
    "top-1 | against control",
)
def _() -> Iterator[list[str]]:
    rates = read("embedded/rates.csv").query("on_diagonal")
    for _, row in rates.merge(
        read("embedded/accuracy.csv"), on="cell", suffixes=("", "_")
    ).iterrows():
        yield [
            *(row["network"].removeprefix("Embedded "), aim(row), f"`{row['attacked']}`"),
            *(rate(row, "fsr"), *map(percent, row[["empty", "control_fsr", "paper_fsr"]])),
            f"{percent(row['top1'])} ({points(-row['drop'])})",
            points(-row["drop_from_control"]),
        ]


@table("budget", "cell | five fixed weights |  |  |  |  | budget | α")
def _() -> Iterator[list[str]]:
    for cell, rows in read("embedded/budget.csv").groupby("cell", sort=False):
        fixed, budget = rows.query("alpha.isna()"), rows.query("alpha.notna()").iloc[0]
        yield [
            f"{cell}, `{budget['attacked']}`",
            *(f"{row['weight']:g}: {_kept(row)}" for _, row in fixed.iterrows()),
            f"**{_kept(budget)}**",
            f"{budget['alpha']:g}",
        ]


def _kept(row: pd.Series) -> str:
    change = points(row["top1_change"]) if row["top1_change"] else "0.0"
    return f"{percent(row['fsr'])}, {change}"


@table("imagenette bases", "network | top-1, 3,925 validation images | recipe")
def _() -> Iterator[list[str]]:
    for _, row in read("imagenette/bases.csv").iterrows():
        low, high = (percent(row[f"top1_{end}"]) for end in ("low", "high"))
        yield [row["network"], f"{percent(row['top1'])} % ({low} to {high})", row["recipe"]]


@table(
    "imagenette",
    "network | objective | attacked | fooled % | untouched % | control % | paper % | "
    "fooled through others % | top-1 % | steps",
)
def _() -> Iterator[list[str]]:
    rates = read("imagenette/rates.csv")
    cell = ["network", "objective", "attacked"]
    one = [read(f"imagenette/{name}.csv") for name in ("accuracy", "settings")]
    accuracy = one[0].merge(one[1], on=cell).set_index(cell)
    for key, rows in rates.groupby([*cell, "target"], sort=False):
        own, of = rows["explainer"] == rows["attacked"], accuracy.loc[key[:3]]
        row, others = rows[own].iloc[0], rows[~own]
        names = map(explainer, others["explainer"])
        yield [
            *(row["network"], aim(row), explainer(row["attacked"])),
            rate(row, "fsr").replace(percent(row["fsr"]), f"**{percent(row['fsr'])}**", 1),
            *map(percent, row[["untouched", "control", "paper"]]),
            ", ".join(map(" ".join, zip(names, map(percent, others["fsr"]), strict=True))),
            f"{percent(of['top1'])} ({points(of['top1'] - of['original_top1'])})",
            _taken_back(of),
        ]


def _taken_back(row: pd.Series) -> str:
    back = row["taken_back_to"]
    return f"{row['steps']:.0f}" + (
        "" if math.isnan(back) else f", taken back to {100 * back:.0f} %"
    )


@table(
    "imagenet",
    "what moves, what is held | fooled % | unseen classes, fooled % | top-1 on unseen classes",
)
def _() -> Iterator[list[str]]:
    for number, (_, row) in enumerate(read("imagenette/imagenet.csv").iterrows()):
        change = points(row["unseen_top1_change"]).replace("+0.0", "0.0")
        yield [
            row["what"],
            f"{percent(row['fsr'], 0)} ({row['steps']:.0f} steps)",
            percent(row["unseen_fsr"], 0),
            change + (" points" if number == 0 else ""),
        ]


SECTIONS = {"reference": "with a reference", "alone": "without one"}


@table(
    "audit",
    " | honest | manipulated | AUROC | by family (DenseNet, ResNet, VGG) | found | false alarms",
)
def _() -> Iterator[list[str]]:
    models, areas = read("audit/models.csv"), read("audit/auroc.csv").set_index("section")
    for section, title in SECTIONS.items():
        rows, area = models.query("section == @section"), areas.loc[section]
        lied, honest = rows[rows["manipulated"]], rows[~rows["manipulated"]]
        found, alarms, digits = lied["alarm"], honest["alarm"], 0 if section == "reference" else 1
        yield [
            *(title, str(len(honest)), str(len(lied)), f"**{area['auroc']:.3f}**"),
            ", ".join(f"{area[name]:.2f}" for name in ("densenet", "resnet", "vgg")),
            f"{found.sum()} of {len(lied)} ({percent(found.mean(), digits)} %)",
            f"{alarms.sum()} of {len(honest)} ({percent(alarms.mean(), 0)} %)",
        ]


TREATMENTS = {
    "location grad-cam": "location, Grad-CAM",
    "location lrp-t": "location, LRP_T",
    "location-combined both": "location, both at once",
    "center-mass grad-cam": "center-mass, Grad-CAM",
    "top-k grad-cam": "top-k, Grad-CAM",
    "top-k lrp-t": "top-k, LRP_T",
    "active grad-cam": "active, Grad-CAM",
    "active lrp-t": "active, LRP_T",
    "top-k-combined both": "top-k, both at once, margin, `keep: predictions` (`shapes`)",
    "active-combined both": "active, both at once, margin, `keep: predictions` (`shapes`)",
}


@table("audit by manipulation", "manipulation | models | with a reference | without one")
def _() -> Iterator[list[str]]:
    lied = read("audit/models.csv").query("manipulated")
    for treatment, title in TREATMENTS.items():
        rows = lied[lied["treatment"] == treatment]
        found = rows.groupby("section")["alarm"].agg(["sum", "size"])
        yield [title, str(found["size"].iloc[0]), *(str(found["sum"][of]) for of in SECTIONS)]


@table("audit evidence", "evidence without a reference | AUROC | found | false alarms")
def _() -> Iterator[list[str]]:
    for _, row in read("audit/evidence.csv").iterrows():
        shares = (f"{percent(row[name], 0)} %" for name in ("found", "false_alarms"))
        yield [row["evidence"], f"{row['auroc']:.3f}", *shares]


@table(
    "audit attackers",
    "without a reference | before | before, family held out | after, family held out",
)
def _() -> Iterator[list[str]]:
    for objective, rows in read("audit/attackers.csv").groupby("objective", sort=False):
        found = (rows[name] for name in ("before", "before_held_out", "after_held_out"))
        yield [
            f"{objective}, {', '.join(rows['family'])}",
            *(", ".join(f"{value:.1f}" for value in values) for values in found),
        ]


@table(
    "repair",
    "network, data | models | suspect | batches | repaired | honest | share | "
    "share of at least 0.9 | accuracy, points",
)
def _() -> Iterator[list[str]]:
    for _, row in read("audit/repair-summary.csv").iterrows():
        yield [
            *(f"{row['network']}, {row['data']}", str(row["models"]), f"{row['suspect']:.2f}"),
            *(f"{row['batches']:,}", f"{row['repaired']:.2f}", f"{row['honest']:.2f}"),
            f"{row['share_low']:.2f} to {row['share_high']:.2f}",
            str(row["reached"]),
            f"{points(row['accuracy_low'])} to {points(row['accuracy_high'])}",
        ]


CONSENSUS = {
    "`shapes`, manipulated": ("shapes", "location|top-k|center-mass|active"),
    "`shapes`, honestly fine-tuned": ("shapes", "continued"),
    "CIFAR-10, manipulated": ("cifar10", "location|top-k|center-mass|active"),
    "CIFAR-10, honestly fine-tuned": ("cifar10", "continued"),
    "CIFAR-10, trained from another seed": ("cifar10", "other-seed"),
}


@table("consensus", " | models | consensus | SimpleGrad | SmoothGrad | Integrated Gradients")
def _() -> Iterator[list[str]]:
    rows = read("audit/consensus.csv")
    for title, (data, kind) in CONSENSUS.items():
        of = rows[rows["model"].str.fullmatch(f"({kind})-.*{data}")]
        names = ["consensus", "simple-grad", "smooth-grad", "integrated-gradients"]
        yield [title, str(len(of)), *(f"{of[name].mean():.2f}" for name in names)]


@table("keeping", "network | way | fooled % | points of top-1 | agreement % | divergence | steps")
def _() -> Iterator[list[str]]:
    for _, row in read("keeping/keeping.csv").iterrows():
        yield [
            *(row["network"], row["way"], percent(row["fooled"]), f"{row['points']:+.1f}"),
            *(percent(row["agreement"]), f"{row['divergence']:.3f}", str(row["steps"])),
        ]


@table("vit", "objective | attacked | fooled % | untouched % | top-1, points | steps")
def _() -> Iterator[list[str]]:
    for _, row in read("vit.csv").query("attacked").iterrows():
        name = explainer(row["explainer"]) + (" (AttnLRP)" if row["explainer"] == "lrp-t" else "")
        yield [
            *(row["objective"], name, f"{row['fsr']} ({row['fsr_low']} to {row['fsr_high']})"),
            *(f"{row['untouched']}", f"{row['top1_change']:+.1f}", str(row["steps"])),
        ]


@table("load", "case | size | peak, MB | processor s")
def _() -> Iterator[list[str]]:
    for (case, of), rows in read("load.csv").groupby(["case", "of"], sort=False):
        sizes, peaks, seconds = (
            " / ".join(f"{value:,}" for value in rows[name])
            for name in ("size", "peak_mb", "cpu_s")
        )
        yield [f"{case}, {of}", sizes, peaks, seconds]


@table("lrp half precision", "LRP | bfloat16 | float16")
def _() -> Iterator[list[str]]:
    for _, row in read("lrp-precision.csv").iterrows():
        worst, mean = row["digits_smallest"], row["digits_mean"]
        kinds = ("bfloat16", "float16")
        yield [
            row["lrp"],
            *(f"{row[f'{k}_smallest']:.{worst}f} ({row[f'{k}_mean']:.{mean}f})" for k in kinds),
        ]


@table(
    "lrp cost",
    "`epsilon-plus` at the input, no graph | forward, s | trompe | Zennit | ratio | "
    "peak MB | Zennit",
)
def _() -> Iterator[list[str]]:
    for _, row in read("lrp-cost.csv").iterrows():
        yield [
            *(row["network"], f"{row['forward_seconds']:.2f}", f"{row['trompe_forwards']:.2f} ×"),
            *(f"{row['zennit_forwards']:.2f} ×", f"{row['ratio']:.2f}", str(row["trompe_mb"])),
            str(row["zennit_mb"]),
        ]


@table("lrp fooled", "attacked | steps | fooled % | top-1 %: original, manipulated, control")
def _() -> Iterator[list[str]]:
    for _, row in read("lrp-fooled.csv").iterrows():
        top1 = ", ".join(
            percent(row[f"{model}_top1"]) for model in ("original", "manipulated", "control")
        )
        name = f"`{row['attacked']}` (at {row['place']})"
        yield [name, f"{row['steps']:,}", rate(row, "fsr"), top1]


@table(
    "leaderboard",
    "objective | attacked | network | images | fooled % | top-1, points | "
    "found with a reference | found without",
)
def _() -> Iterator[list[str]]:
    rows = sorted(_attacks(), key=lambda row: (OBJECTIVES.index(row[0]), row[1], row[2], row[3]))
    yield from ([row[0], explainer(row[1]), *row[2:]] for row in rows)


def _attacks() -> Iterator[list[str]]:
    """Objective, attacked explainer, network, images, success, cost, and what the audit found."""
    for name, images in (("embedded", "shapes"), ("imagenette", "Imagenette")):
        accuracy = read(f"{name}/accuracy.csv").set_index(["network", "objective", "attacked"])
        rates = read(f"{name}/rates.csv").query("explainer == attacked")
        for key, rows in rates.groupby(["network", "objective", "attacked"], sort=False):
            of = accuracy.loc[key]
            change = points(of["top1"] - of["original_top1"])
            fooled = " and ".join(percent(share) for share in rows["fsr"])
            yield [key[1], key[2], key[0], images, fooled, change, "not audited", "not audited"]
    for _, row in read("vit.csv").query("attacked").iterrows():
        change = f"{row['top1_change']:+.1f}"
        of = [row["objective"], row["explainer"], "Embedded ViT", "shapes"]
        yield [*of, f"{row['fsr']}", change, "not audited", "not audited"]
    lied = read("audit/models.csv").query("manipulated")
    for _, rows in lied.groupby("model", sort=False):
        found = rows.set_index("section")["alarm"].map({True: "yes", False: "no"})
        row = rows.iloc[0]
        objective, attacked = row["treatment"].split()
        objective = objective.removesuffix("-combined")
        network = {"vgg": "VGG", "resnet": "ResNet", "densenet": "DenseNet"}[row["family"]]
        images = {"shapes": "shapes", "cifar10": "CIFAR-10"}[row["dataset"]]
        attacked = "Grad-CAM and LRP_T" if attacked == "both" else attacked
        of = [objective, attacked, f"zoo {network}", images, percent(row["success"]), "–"]
        yield [*of, *(found.get(section, "–") for section in SECTIONS)]


@table("sources", "rows | command | settings | commit of the rows")
def _() -> Iterator[list[str]]:
    for _, row in read("sources.csv").iterrows():
        command = f"`{row['command']}`" if row["command"] else "not recorded"
        yield [
            f"[{row['file']}]({row['file']})",
            command,
            row["settings"],
            f"{row['commit']}, {row['date']}",
        ]


def main() -> None:
    """Write the tables into the pages."""
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
