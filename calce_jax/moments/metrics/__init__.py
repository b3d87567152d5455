"""Scores of predicted windows: the original's protocol and the official QVHighlights protocol.

Only moment retrieval is scored (R1, mIoU, mAP). The highlight detection scores of the QVHighlights release need
saliency ratings, which this model does not predict.
"""

from calce_jax.moments.metrics.pairing import EvalCase
from calce_jax.moments.metrics.protocols import PROTOCOLS, evaluate_cases, format_table

__all__ = ["PROTOCOLS", "EvalCase", "evaluate_cases", "format_table"]
