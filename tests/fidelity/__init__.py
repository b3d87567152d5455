"""The comparison with the original: recorded inputs and weights go through our components, results beside recordings.

    python -m tests.fidelity --golden=DIR [--json=FILE] [--page=FILE]

Every size and setting is read from the folder, so one that was recorded at other sizes, with other depths, batches,
seeds or cases works unchanged. Each module here knows one family of groups; `report` counts, `folder` reads.
"""
