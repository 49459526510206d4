"""How the cost of a training step grows with its sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetuning.distributed import jobs, launch
from finetuning.distributed.planner import FAMILY
from finetuning.profiles import choose
from finetuning.workspace import Workspace

SHAPES = {  # two smaller than t5-small, of the same make; then the family's own
    "tiny": {**FAMILY["google-t5/t5-small"], "num_layers": 4, "d_model": 256, "d_ff": 1024, "num_heads": 4},
    "mini": {**FAMILY["google-t5/t5-small"], "num_layers": 4, "d_model": 384, "d_ff": 1536},
    "small": FAMILY["google-t5/t5-small"],
    "base": FAMILY["google-t5/t5-base"],
}


def growth_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """The exponent b of seconds = a * size^b by least squares on logarithms, and its standard error (of two: None)."""
    x, y = np.log(sizes), np.log(seconds)
    slope, offset = np.polyfit(x, y, 1)
    left = y - slope * x - offset
    error = np.sqrt((left**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum()) if len(x) > 2 else None
    return {"exponent": slope, "standard_error": error, "sizes": list(sizes), "seconds": list(seconds)}


def seconds_by_ranks(ranks: int) -> float:
    """Seconds of a DeepSpeed step (stage 0, t5-tiny's shape) on 16 reviews shared out over so many ranks."""
    workspace = Workspace("pocket", choose())
    options = {"steps": 6, "micro_batch": 8 // ranks, "batch_size": 16, "shape": SHAPES["tiny"]}
    job = jobs.training_job(workspace, f"bench_{ranks}", deepspeed="zero0", **options)
    return float(np.median([rank["seconds_per_step"] for rank in launch.run(job, ranks=ranks)]))
