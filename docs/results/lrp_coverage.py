"""LRP on every classifier of torchvision and the smallest member of every family of timm.

    python docs/results/lrp_coverage.py

writes ``lrp_coverage.csv`` beside it, one row per network, with random weights: whether the maps of
``lrp`` and ``lrp-t``, each with its default composite, are finite in single precision, and in
double precision the shares of the explained logit that arrive at the image and that are lost to
biases (the constants of a softmax among them), to stabilisers and to other causes, as
`conservation` has them. Rows that the file has already are kept: delete it to begin anew.
"""

from __future__ import annotations

import csv
import gc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn
from torchvision import models
from works_with import lively

import trompe
from trompe.base.messages import first_sentence
from trompe.explainers import parse_explainer
from trompe.explainers.relevance import conservation

TABLE = Path(__file__).with_name("lrp_coverage.csv")
COLUMNS = ("network", "pixels", "lrp", "lrp-t", "arrived", "bias", "stabiliser", "other")

TORCHVISION = {"vit_h_14": 56, "maxvit_t": 224, "googlenet": 96, "inception_v3": 96}
"""Those of torchvision that take no images of 64 pixels, each with a size that it takes."""

TIMM = {
    64: """
        test_byobnet convmixer_768_32 test_convnext cpubone_nano csatv2 cs3darknet_focus_s
        cspnext_tiny davit_tiny densenet121 dla46x_c dpn48b edgenext_xx_small test_efficientnet
        efficientvit_b0 fasternet_t0 fastvit_t8 focalnet_tiny_srf ghostnet_050
        hardcorenas_b hgnetv2_b0 hieradet_small hrnet_w18_small iformer_t inception_next_atto
        lcnetv2_small lowformer_b0 test_mambaout poolformerv2_s12 mobilenetv3_small_050
        mobilenetv5_base mobilevit_xxs naflexvit_base_patch16_parfac_gap nasnetalarge
        nextvit_small test_nfnet pnasnet5large pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050
        repvit_m1 res2next50 resnest14d test_resnet resnetv2_18 rexnet_100 selecsls42
        legacy_seresnet18 shvit_s1 skresnet18 starnet_s050 tiny_vit_5m_224 tresnet_m vgg11
        ese_vovnet19b_slim_dw legacy_xception xception41p
    """,
    96: """
        inception_resnet_v2 inception_v3 inception_v4
    """,
    128: """
        efficientvim_m1
    """,
    160: """
        test_coatnet test_vit test_vit_relpos
    """,
    224: """
        beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny deit_tiny_patch16_224
        efficientformer_l1 efficientformerv2_s0 efficientvit_m0 gcvit_xxtiny hiera_tiny_224
        levit_128s gmlp_ti16_224 mvitv2_tiny nest_tiny pit_ti_224 sequencer2d_s swiftformer_xs
        swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 tnt_s_legacy_patch16_224 twins_svt_small
        visformer_tiny vit_tiny_r_s16_p8_224 samvit_base_patch16_224 vitamin_small_224
        volo_d1_224 xcit_nano_12_p8_224
    """,
    240: """
        crossvit_tiny_240
    """,
    256: """
        halonet_h1 swinv2_tiny_window8_256
    """,
    336: """
        eva02_tiny_patch14_336
    """,
}
"""The smallest classifier of every family of timm, by a size of image that it takes."""


def networks() -> Iterator[tuple[str, Callable[[], nn.Module], int]]:
    """The name of each network, what makes it, and the size of its images."""
    for name in models.list_models(module=models):
        side = TORCHVISION.get(name, 64)
        sized = {"image_size": side} if name.startswith("vit") else {}
        yield f"torchvision:{name}", partial(models.get_model, name, weights=None, **sized), side
    for side, names in TIMM.items():
        for name in names.split():
            yield f"timm:{name}", partial(timm.create_model, name), side


def row(name: str, make: Callable[[], nn.Module], side: int) -> dict[str, str]:
    """What LRP makes of one network."""
    torch.manual_seed(0)
    network = lively(make().eval(), side)
    image = torch.randn(1, 3, side, side)
    found = {"network": name, "pixels": str(side)}
    for spec in ("lrp", "lrp-t"):
        try:
            relevance = parse_explainer(spec)(network, image, 1)
            found[spec] = "finite" if relevance.isfinite().all() else "WRONG"
        except trompe.TrompeError as error:
            found[spec] = first_sentence(error)
    if found["lrp"] == "finite":
        table = conservation(trompe.LRP(), network.double(), image.double(), 1)
        shares = {
            "arrived": table["received"].iloc[-1],
            **table[["bias", "stabiliser", "other"]].sum(),
        }
        found |= {key: f"{share:.4g}" for key, share in shares.items()}
    return found


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    known = {}
    if TABLE.exists():
        with TABLE.open(newline="") as file:
            known = {line["network"]: line for line in csv.DictReader(file)}
    made = {name: (make, side) for name, make, side in networks()}
    for wanted in [name for name in made if name not in known]:
        known[wanted] = row(wanted, *made[wanted])
        gc.collect()
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(known[name] for name in made if name in known)
