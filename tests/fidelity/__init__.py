"""Comparison with recordings of the original: our components run on its recorded inputs and weights.

    python -m tests.fidelity --golden=DIR [--json=FILE] [--page=FILE]

All sizes and settings are read from the folder, so recordings of other sizes, depths, batches, seeds or cases work too.
Each module compares one family of groups; `folder` reads the recordings, `report` collects the results.
"""
