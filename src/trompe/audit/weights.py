"""How far the weights moved from those of another model."""

from __future__ import annotations

import pandas as pd
from torch import Tensor, nn


def weight_drift(model: nn.Module, reference: nn.Module | None) -> pd.DataFrame:
    """Relative change of every tensor of weights and BatchNorm statistics: ‖w - w₀‖ / ‖w₀‖.

    Columns ``layer``, ``what`` (``weight``, ``bias``, ``running_mean`` ...) and ``change``; no
    rows without a reference or if the two have different layers.
    """
    now, then = _tensors(model), {} if reference is None else _tensors(reference)
    rows = []
    if {k: v.shape for k, v in now.items()} == {k: v.shape for k, v in then.items()}:
        for name, tensor in now.items():
            if tensor.is_floating_point():
                old = then[name].to(tensor)
                moved = float((tensor - old).norm() / old.norm().clamp_min(1e-12))
                layer, _, what = name.rpartition(".")
                rows.append({"layer": layer, "what": what, "change": moved})
    return pd.DataFrame(rows, columns=["layer", "what", "change"]).astype({"change": float})


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
