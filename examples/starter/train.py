"""Trains the image starter and writes it, with its model card, into the package.

    python examples/starter/pictures.py examples/starter/pictures
    python examples/starter/train.py [MINUTES]   # 60; on one core, or a GPU

The same as `tokenmill fit bpe-image --job examples/starter/job.yaml --out … --set minutes=…`, and
the card from the lineage that it returns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenmill.pipelines.fit import fit
from tokenmill.workers.tokenizers.bpe_image.tokenizer import STARTER_FILE

HERE = Path(__file__).resolve().parent


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    lineage = fit("bpe-image", str(HERE / "job.yaml"), str(STARTER_FILE), {"minutes": minutes})
    write_card(lineage)


def write_card(lineage: Mapping[str, Any]) -> None:
    text = (HERE / "card.md").read_text(encoding="utf-8")
    ours, bar = lineage["held_out_psnr"], lineage["bar_psnr"]
    verdict = "better" if ours >= bar else "worse"
    settings = lineage["settings"]
    values = {
        **lineage,
        **{f"set_{key}": value for key, value in settings.items()},
        "difference": f"{abs(ours - bar):.2f} dB {verdict}",
        "side": settings["size"] // 8,
        "bits": settings["codes"].bit_length() - 1,
        "megabytes": f"{STARTER_FILE.stat().st_size / 1e6:.1f}",
        "lineage": json.dumps(lineage, indent=1),
    }
    STARTER_FILE.with_name("CARD.md").write_text(text.format(**values), encoding="utf-8")


if __name__ == "__main__":
    main()
