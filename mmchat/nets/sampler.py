"""Ferret's spatial-aware region sampler: a region of any shape becomes one vector, by points drawn inside it.

You et al. 2023, arXiv 2310.07704; parameter names and arithmetic as in apple/ml-ferret (`GeoRegionSampler`). Two things
are kept because the weights were trained with them: the features of a point (x, y) are read at the transposed place,
column y and row x, and the neighbours' distances are reckoned in the model's own type. What the original draws by
chance is drawn from a seed of its own for every region: the same region gives the same vector, whatever else is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

POINTS = 512
CENTRES = (128, 32)
NEIGHBOURS = (24, 24)


@dataclass(frozen=True)
class Choices:
    """What is left to chance for one region: `points` [n], which of the mask's places; `starts`, the first centre of
    each stage.

    `centres` [m] and `neighbours` [m, k] of each stage follow from these and are given only where a record must be met
    to the letter: places of a pixel lattice are often equally far.
    """

    points: torch.Tensor
    starts: tuple[int, ...]
    centres: tuple[torch.Tensor, ...] = ()
    neighbours: tuple[torch.Tensor, ...] = ()


class Shared(nn.Module):
    """One layer over each neighbour, then the norm over its channels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(width, out, 1), nn.ReLU())
        self.norm = nn.LayerNorm(out)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[m, k, width] -> [m, k, out]."""
        return self.norm(self.net(features.transpose(1, 2)).transpose(1, 2))


class RegionSampler(nn.Module):
    """Points of a mask, their features, two stages of centres that gather from their neighbours, two layers.

    width: of the feature map; language_width: of the vector that comes out. The counts are those of every published
    checkpoint. `pool`: "max" or "mean" over a centre's neighbours.
    """

    def __init__(
        self,
        width: int,
        language_width: int,
        points: int = POINTS,
        centres: Sequence[int] = CENTRES,
        neighbours: Sequence[int] = NEIGHBOURS,
        pool: str = "max",
    ) -> None:
        super().__init__()
        if pool not in ("max", "mean"):
            raise ValueError(f"no pooling {pool!r} in a region sampler: sampler_pooler_mode is max or mean")
        self.points, self.centres, self.neighbours, self.pool = points, tuple(centres), tuple(neighbours), pool
        self.diff_projector_list = nn.ModuleList(nn.Linear(width + 2, width + 2) for _ in self.centres)
        self.agg_projector_list = nn.ModuleList(Shared(2 * (width + 2), width) for _ in self.centres)
        self.flatten_projector = nn.Linear(width * self.centres[-1], width)
        self.dim_projector = nn.Linear(width, language_width)

    def forward(self, level: torch.Tensor, mask: torch.Tensor, choices: Choices | None = None) -> torch.Tensor:
        """level [c, h, w] of the whole picture, mask [W, H] (x first) with something in it -> [language width]."""
        choices = choices or self.choose(int(mask.count_nonzero()))
        points = positions(mask, choices.points.to(mask.device)).to(level)
        features = transposed(level, points)
        for stage in range(len(self.centres)):
            points, features = self.stage(stage, points, features, choices)
        return self.project(features)

    def choose(self, places: int, seed: int = 0) -> Choices:
        """Choices for a region of so many places: a part of them, or all and some of them twice or more.

        Which region it is shows in its places alone, so that the same one always gives the same vector.
        """
        generator = torch.Generator().manual_seed(seed)
        if places <= self.points:
            again = torch.randint(max(places, 1), (self.points - places,), generator=generator)
            picked = torch.cat((torch.arange(places), again))
        else:
            if places > 64 * self.points:  # so many that hardly one is drawn twice: no need to shuffle millions
                some = torch.randint(places, (4 * self.points,), generator=generator).unique()
            else:
                some = torch.arange(places)
            picked = some[torch.randperm(len(some), generator=generator)[: self.points]]
        left = (self.points, *self.centres[:-1])
        return Choices(picked, tuple(int(torch.randint(count, (1,), generator=generator)) for count in left))

    def stage(
        self, stage: int, points: torch.Tensor, features: torch.Tensor, choices: Choices
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Points [n, 2] and their features [n, c] -> the stage's centres [m, 2] and what they gathered [m, c]."""
        if choices.centres:
            centres = choices.centres[stage].to(points.device)
        else:
            centres = farthest(points, self.centres[stage], choices.starts[stage])
        if choices.neighbours:
            around = choices.neighbours[stage].to(points.device)
        else:
            around = nearest(points[centres], points, self.neighbours[stage])
        anchors = torch.cat((features, points), -1)[centres][:, None].expand(-1, around.shape[1], -1)
        gathered = torch.cat((self.difference(stage, points, features, centres, around), anchors), -1)
        gathered = self.agg_projector_list[stage](gathered)
        return points[centres], gathered.amax(1) if self.pool == "max" else gathered.mean(1)

    def difference(
        self, stage: int, points: torch.Tensor, features: torch.Tensor, centres: torch.Tensor, around: torch.Tensor
    ) -> torch.Tensor:
        """How the neighbours [m, k] of the centres [m] differ from them: [m, k, c + 2]."""
        both = torch.cat((features, points), -1)
        return self.diff_projector_list[stage](both[around] - both[centres][:, None])

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """The last stage's features [m, c] -> [language width]."""
        return self.dim_projector(self.flatten_projector(features.flatten()))


def positions(mask: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The `wanted` [n] of a mask's places, counted x by x over the mask [W, H]: (x, y) in the unit square, without half
    a pixel's shift, float32 [n, 2]. ValueError for an empty mask.

    A picture may have a hundred million places: only the wanted ones are written out.
    """
    mask = mask.bool()
    until = mask.sum(1).cumsum(0)
    if not until[-1]:
        raise ValueError("A region covers no pixel of the picture: draw it larger.")
    x = torch.searchsorted(until, wanted, right=True)
    columns = mask[x]
    number = wanted - (until[x] - columns.sum(1)) + 1  # which of its column's places, from 1
    y = (columns.cumsum(1) == number[:, None]).int().argmax(1)
    return torch.stack((x, y), 1) / torch.tensor(mask.shape, device=mask.device)


def transposed(level: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Features [n, c] of level [c, h, w] at points (x, y) in its type: read at column y, row x, corners at 0 and 1.

    The mixing is done in float32 whatever the type is, as the original does.
    """
    grid = (2.0 * points.to(level).flip(-1) - 1.0).float()[None, :, None]
    return F.grid_sample(level[None].float(), grid, align_corners=True)[0, :, :, 0].T.to(level.dtype)


def averaged(level: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The plainer road of the repository (`region_fea_adapter`): the mean [c] over all of a mask's places."""
    return transposed(level, positions(mask, torch.arange(int(mask.count_nonzero())))).mean(0)


def farthest(points: torch.Tensor, count: int, start: int) -> torch.Tensor:
    """Indices [count] of points [n, 2], each the farthest from all before it, `start` first; of equals the first."""
    chosen = torch.zeros(count, dtype=torch.long, device=points.device)
    distance = torch.full((len(points),), 1e10, device=points.device)  # at least float32, whatever the points are
    at = torch.tensor(start, device=points.device)
    for index in range(count):
        chosen[index] = at
        distance = torch.minimum(distance, (points - points[at]).square().sum(-1))
        at = distance.argmax()
    return chosen


def nearest(centres: torch.Tensor, points: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [m, count] of the points [n, 2] nearest to centres [m, 2], in no order; a centre is its own neighbour."""
    return apart(centres, points).topk(count, -1, largest=False, sorted=False).indices


def apart(centres: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Squared distances [m, n], by the expanded square in the points' own type: in half precision that is coarse."""
    distances = -2 * (centres @ points.T)
    distances = distances + centres.square().sum(-1)[:, None]
    return distances + points.square().sum(-1)[None]
