"""What the pages show of a run: its diagnosis, its scores, units of its values, the meaning of what it logged."""

from __future__ import annotations

from pathlib import Path

import bookkit
import pandas as pd

MEASURES = {
    "au_ratio": "active units / dimensions", "kl": "KL (nats per set)", "mi": "mutual information (nats)",
    "decoder_use_current": "decoder use, current set (nats per set)", "at_floor": "share at the floor",
    "collapsed": "share collapsed (0.01, 0.01)", "mean_sigma": "mean sigma", "s_past": "S_past", "s_cur": "S_cur",
    "zh_cka": "similarity of z and h (CKA)", "probe_gain": "probe gain of h over z (R²)",
}  # fmt: skip
UNITS = {
    "Age": "years", "BUN": "mg/dL", "Creatinine": "mg/dL", "GCS": "3 to 15", "Gender": "0 or 1", "Glucose": "mg/dL",
    "HCO3": "mmol/L", "HR": "beats a minute", "K": "mEq/L", "Lactate": "mmol/L", "MAP": "mmHg", "Na": "mEq/L",
    "PaCO2": "mmHg", "PaO2": "mmHg", "Platelets": "cells/nL", "RespRate": "breaths a minute", "SaO2": "per cent",
    "SysABP": "mmHg", "Temp": "degrees Celsius", "Urine": "mL", "WBC": "cells/nL", "pH": "–",
}  # fmt: skip


def in_units(table: pd.DataFrame, units: dict[str, str]) -> None:
    """Show a table with the unit of each variable beside it; a unit that nobody has told is that of the reader."""
    table = table.copy()
    table.insert(table.columns.get_loc("variable") + 1, "unit", table["variable"].map(units).fillna("yours"))
    bookkit.table(table.astype(object).where(table.notna(), "–"))


def measures(found: dict[str, dict]) -> None:
    """Diagnoses side by side, each beside its network before training."""
    rows = []
    for key, text in MEASURES.items():
        row = {"measure": text}
        for name, m in found.items():
            row |= {name: m[key], f"{name}, untrained": m["untrained"][key]}
        rows.append(row)
    bookkit.table(rows)


def scores(found: dict[str, dict]) -> None:
    """Scores side by side, each with its 95 % interval."""
    columns = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score"}
    bookkit.table([
        {"predictor": name, **{text: f"{s[key]:.3f} [{s[key + '_low']:.3f}, {s[key + '_high']:.3f}]"
                               for key, text in columns.items()}} for name, s in found.items()
    ])  # fmt: skip


def logged_numbers(history: pd.DataFrame) -> None:
    """Every column of a run's history with its meaning; a column without one is an error, and fails the build."""
    meanings = dict(pd.read_csv(Path(__file__).resolve().parent / "history.csv").itertuples(index=False))
    rows = []
    for name in history.columns:
        families = [key for key in meanings if key.endswith(("_level", "validation_")) and name.startswith(key)]
        fits = families + [key for key in meanings if key == name]
        if not fits:
            raise KeyError(f"history column {name} is explained nowhere: add it to book/history.csv")
        rows.append((name, meanings[max(fits, key=len)]))
    bookkit.table(pd.DataFrame(rows, columns=["column", "meaning (mean over the steps since the last row)"]))
