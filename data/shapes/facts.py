"""What happens in a scene, and what a query asks for, as short texts that are equal where the meaning is.

    red circle          a red circle is on the screen
    red circle left     it moves to the left; or "right", or "stays"
    about lighthouse    somebody talks about a lighthouse

A query does not happen in a scene if its fact is none of those of the scene, since these are complete.
"""

from data.shapes.scene import VISUAL_QUERY_TEMPLATES, Scene, SceneQuery


def scene_facts(scene: Scene) -> list[str]:
    """Return all that happens in a scene, in alphabetical order."""
    facts = {f"about {sentence.noun}" for sentence in scene.sentences}
    for track in scene.tracks:
        facts |= {track.name, f"{track.name} {track.motion}"}
    return sorted(facts)


def query_fact(query: SceneQuery) -> str:
    """Return what a query asks for."""
    (item,) = query.items
    if query.kind == "caption":
        return f"about {item}"
    (motion,) = (
        motion
        for motion, templates in VISUAL_QUERY_TEMPLATES.items()
        if query.query in [template.format(thing=item) for template in templates]
    )
    return item if motion is None else f"{item} {motion}"
