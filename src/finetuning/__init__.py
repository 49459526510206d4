"""Fine-tuning language models, hands on: the helper package of the course.

Modules are named after the steps of the lessons. Importing the package loads none of the heavy libraries. What a
command needs before it has anything to compute (``--help``, a wrong file name, a run that is done) imports torch,
transformers and the others only inside its functions; the other modules import them at the top.
"""

import os

__version__ = "1.0.0"

# Idle OpenMP threads would spin and slow down every other process; this must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
