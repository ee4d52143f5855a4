"""Which place a picture shows, told from the things in it and from what the classifier says of the whole."""

from __future__ import annotations

import torch

SCENES = (
    "kitchen", "bedroom", "living room", "bathroom", "office", "beach", "street", "forest", "garden", "park",
    "restaurant", "mountain", "lake", "city", "desert",
    "field", "library", "shop", "station", "stadium", "palace", "church", "harbour", "valley", "river", "farm",
    "airport",
)  # fmt: skip
# The detector's words that tell of a place, with how much. Checked by hand.
_TOLD = {
    "kitchen": {68: 0.8, 69: 1.0, 70: 0.6, 71: 0.3, 72: 0.9}, "bedroom": {59: 1.0},
    "living room": {57: 1.0, 62: 0.4, 65: 0.3, 56: 0.15, 75: 0.2},
    "bathroom": {61: 1.2, 71: 0.6, 79: 0.5, 78: 0.5},
    "office": {63: 0.6, 64: 0.6, 66: 0.6, 62: 0.3, 56: 0.15, 67: 0.1}, "beach": {37: 1.0, 33: 0.5},
    "harbour": {8: 0.5},
    "street": {2: 0.6, 5: 0.8, 7: 0.5, 9: 0.8, 10: 0.5, 11: 0.5, 12: 0.6, 3: 0.4, 1: 0.3}, "city": {5: 0.3, 9: 0.3},
    "restaurant": {40: 0.5, 42: 0.2, 43: 0.2, 53: 0.4, 60: 0.25},
    "field": {17: 0.5, 18: 0.5, 19: 0.5}, "farm": {18: 0.3, 19: 0.4}, "park": {13: 0.4},
    "mountain": {30: 0.5, 31: 0.5}, "stadium": {32: 0.4, 34: 0.5, 35: 0.5, 38: 0.5},
    "station": {6: 0.6}, "airport": {4: 0.5}, "library": {73: 0.2},
}  # fmt: skip


def scenes(things: torch.Tensor, classes: torch.Tensor, near: torch.Tensor) -> tuple[str, ...]:
    """Scene words, the likeliest first, none that nothing tells of.

    things [R, 80] and classes [R, 1000] of the candidates, the last one the whole picture; near [len(SCENES), 1080]
    likeness 0..1 of the
    scene words to detector words and classes.
    """
    seen = things.amax(0)
    score = near[:, things.shape[1] :] @ classes[-1]
    for row, scene in enumerate(SCENES):
        score[row] += sum(weight * float(seen[thing]) for thing, weight in _TOLD.get(scene, {}).items())
    order = score.argsort(descending=True).tolist()
    return tuple(SCENES[row] for row in order if float(score[row]) > 0.1)
