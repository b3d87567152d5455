"""Traces of jax's profiler."""

from pathlib import Path

from jax.profiler import ProfileData


def traced_steps(folder: Path, name: str) -> list[int]:
    """Return the numbers of the steps of a name in the one trace of a folder, where TensorBoard looks for it."""
    (path,) = folder.glob("plugins/profile/*/*.xplane.pb")
    planes = ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events if event.name == name]
    return sorted(int(dict(event.stats)["step_num"]) for event in events)
