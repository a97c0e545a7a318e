"""The long campaign: ``python -m tests.fuzz [INPUTS [READER ...]]`` counts outcomes.

A reader that has so many inputs in docs/results/fuzz.csv already is passed over; with names, the
table stays as it is. Inputs are the same every time.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import datasets
import pandas as pd
import torch

from tests.fuzz.campaign import campaign
from tests.fuzz.readers import readers

TABLE = Path(__file__).parents[2] / "docs" / "results" / "fuzz.csv"
AT_ONCE = 500


def main(inputs: int, *names: str) -> int:
    """Run the campaign and write the table; how many findings there were."""
    torch.set_num_threads(1)
    known = pd.read_csv(TABLE).to_dict("records") if TABLE.exists() else []
    rows = {row["reader"]: row for row in known}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
        table = [r for r in readers(Path(folder)) if r.name in names or not names]
        whole = sum(reader.share for reader in table)
        for reader in table:
            wanted = round(inputs * reader.share / whole)
            if rows.get(reader.name, {"inputs": 0})["inputs"] >= wanted and not names:
                continue
            begun = time.process_time()
            counts = dict.fromkeys(["read", "refused", "finding"], 0)
            slowest, places = 0.0, set()
            while (done := sum(counts.values())) < wanted:
                found = campaign(reader, min(AT_ONCE, wanted - done), number=done)
                for outcome, count in found.counts.items():
                    counts[outcome] += count
                slowest = max(slowest, found.slowest)
                for where, (trace, drawn) in found.findings.items():
                    if where not in places:
                        places.add(where)
                        print(f"--- {reader.name}: {where}\n{trace}{drawn!r:.1500}", flush=True)
                if sum(counts.values()) == done:  # there are no more different ones
                    break
            row = {"reader": reader.name, "inputs": sum(counts.values()), **counts}
            rows[reader.name] = row | {"slowest_s": round(slowest, 1)}
            print(rows[reader.name], f"{time.process_time() - begun:.1f} s", flush=True)
            if not names:
                pd.DataFrame(rows.values()).to_csv(TABLE, index=False)
    return sum(row["finding"] for row in rows.values())


if __name__ == "__main__":
    sys.exit(bool(main(int([*sys.argv, "100000"][1]), *sys.argv[2:])))
