"""Scores of predicted windows: the original's protocol and the official QVHighlights protocol.

Windows are scored (R1, mIoU, mAP); `highlights` scores a saliency of clips, where predictions have one.
"""

from calce_jax.moments.metrics.pairing import EvalCase
from calce_jax.moments.metrics.protocols import PROTOCOLS, evaluate_cases, format_table

__all__ = ["PROTOCOLS", "EvalCase", "evaluate_cases", "format_table"]
