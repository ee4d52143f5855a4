"""Colour words of pixels: which of eleven basic colours each pixel has, and each region's shares of them."""

from __future__ import annotations

import torch

NAMES = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
# (first hue, behind the last hue, name), in degrees; red closes the circle.
_HUES = (
    (0, 14, "red"), (345, 361, "red"), (14, 40, "orange"), (40, 68, "yellow"), (68, 165, "green"), (165, 258, "blue"),
    (258, 300, "purple"), (300, 345, "pink"),
)  # fmt: skip


def named(rgb: torch.Tensor) -> torch.Tensor:
    """Pixels [..., 3] in 0..255 -> index into NAMES [...]. Bounds were set by eye on colour charts."""
    rgb = rgb.float() / 255
    value, least = rgb.amax(-1), rgb.amin(-1)
    chroma = value - least
    saturation = torch.where(value > 0, chroma / value.clamp(min=1e-6), torch.zeros_like(value))
    red, green, blue = rgb.unbind(-1)
    step = chroma.clamp(min=1e-6)
    hue = (
        torch.where(
            value == red,
            ((green - blue) / step) % 6,
            torch.where(value == green, (blue - red) / step + 2, (red - green) / step + 4),
        )
        * 60
    )
    out = torch.full(value.shape, NAMES.index("grey"), dtype=torch.long, device=rgb.device)
    coloured = (saturation >= 0.18) & (value > 0.15)

    def put(where: torch.Tensor, name: str) -> None:
        out[where] = NAMES.index(name)

    for low, high, name in _HUES:
        put(coloured & (hue >= low) & (hue < high), name)
    reddish = (hue < 14) | (hue >= 345)
    # Brown is dark or dull orange, pink a pale red.
    put(coloured & (hue >= 8) & (hue < 45) & (value < 0.62), "brown")
    put(coloured & reddish & (saturation < 0.5) & (value > 0.7), "pink")
    put(coloured & (hue >= 14) & (hue < 45) & (saturation < 0.45) & (value < 0.75), "brown")
    put(~coloured & (value > 0.78), "white")
    put(~coloured & (value < 0.25), "black")
    put(value < 0.16, "black")
    return out


def shares(pixels: torch.Tensor, boxes: torch.Tensor, size: int = 24) -> torch.Tensor:
    """Shares [R, 11] of each colour in the inner part of boxes [R, 4] (unit square) of a picture [3, H, W] in
    0..255.
    """
    height, width = pixels.shape[-2:]
    out = boxes.new_zeros(len(boxes), len(NAMES), dtype=torch.float32)
    for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        edge_x, edge_y = 0.18 * (x1 - x0), 0.18 * (y1 - y0)
        columns = torch.linspace(x0 + edge_x, x1 - edge_x, size).mul(width).long().clamp(0, width - 1)
        rows = torch.linspace(y0 + edge_y, y1 - edge_y, size).mul(height).long().clamp(0, height - 1)
        found = named(pixels[:, rows.to(pixels.device)][:, :, columns.to(pixels.device)].permute(1, 2, 0)).flatten()
        out[row] = torch.bincount(found, minlength=len(NAMES)).float() / found.numel()
    return out
