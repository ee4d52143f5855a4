"""The operator's kernels in Triton: imported by triton_kernel.py alone, and only where Triton is installed.

A program answers a block of queries of one (picture, head) over a block of channels. Axes in names: q queries of the
block, c channels of the block, s samples (levels and points together, rounded up to a power of two). Sums are made in
WIDE. Sizes of maps are plain arguments, so that maps of another size need no new compilation and no copy to the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

LEVELS = 8
SIZES = [f"{side}{level}" for level in range(LEVELS) for side in ("height", "width")]


@triton.jit
def pick(level: tl.constexpr, a, b, c, d, e, f, g, h):
    """The level's own of eight numbers."""
    if level == 0:
        return a
    elif level == 1:
        return b
    elif level == 2:
        return c
    elif level == 3:
        return d
    elif level == 4:
        return e
    elif level == 5:
        return f
    elif level == 6:
        return g
    else:
        return h


@triton.jit
def softmax_of(logits, row_q, inside_q, SAMPLES: tl.constexpr, ROUND: tl.constexpr, WIDE: tl.constexpr):
    """[q, s] weights of a block's queries, 0 beyond the last sample."""
    number_s = tl.arange(0, ROUND)
    known_qs = inside_q[:, None] & (number_s < SAMPLES)[None, :]
    # 0 for queries that do not exist, so that nothing there is undefined.
    logit_qs = tl.load(logits + row_q[:, None] + number_s[None, :], mask=known_qs, other=0.0).to(WIDE)
    logit_qs = tl.where((number_s < SAMPLES)[None, :], logit_qs, float("-inf"))
    grown_qs = tl.exp(logit_qs - tl.max(logit_qs, 1)[:, None])
    return grown_qs / tl.sum(grown_qs, 1)[:, None]


@triton.jit
def placed(
    positions, reference, position_q, reference_q, inside_q, height, width,
    POINTS: tl.constexpr, NUMBERS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Pixel column and row [q] of one sample of each query (pixel centres at whole numbers), and how far an offset of
    one moves them.
    """
    x_q = tl.load(positions + position_q, mask=inside_q, other=0.0).to(WIDE)
    y_q = tl.load(positions + position_q + 1, mask=inside_q, other=0.0).to(WIDE)
    step_x_q = tl.full(x_q.shape, 1.0, WIDE)
    step_y_q = tl.full(x_q.shape, 1.0, WIDE)
    if NUMBERS == 0:
        step_x_q = step_x_q * width
        step_y_q = step_y_q * height
        x_q = x_q * width
        y_q = y_q * height
    else:
        if NUMBERS == 4:
            wide_q = tl.load(reference + reference_q + 2, mask=inside_q, other=0.0).to(WIDE)
            high_q = tl.load(reference + reference_q + 3, mask=inside_q, other=0.0).to(WIDE)
            step_x_q = wide_q * 0.5 / POINTS * width
            step_y_q = high_q * 0.5 / POINTS * height
        x_q = tl.load(reference + reference_q, mask=inside_q, other=0.0).to(WIDE) * width + x_q * step_x_q
        y_q = tl.load(reference + reference_q + 1, mask=inside_q, other=0.0).to(WIDE) * height + y_q * step_y_q
    return x_q - 0.5, y_q - 0.5, step_x_q, step_y_q


@triton.jit
def corner_at(padding, column_q, line_q, counts_q, start, height, width, MASKED: tl.constexpr):
    """Row [q] of a corner in the flattened maps, and whether it counts: on the map and no padding."""
    counts_q = counts_q & (column_q >= 0) & (line_q >= 0) & (column_q < width) & (line_q < height)
    row_q = start + line_q * width + column_q
    if MASKED:
        counts_q = counts_q & (tl.load(padding + row_q, mask=counts_q, other=1) == 0)
    return row_q.to(tl.int64), counts_q


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    value, positions, shares, reference, padding, out,
    queries, places, heads, depth,
    position_picture, position_query, share_picture, share_query, reference_picture, reference_query, reference_level,
    height0, width0, height1, width1, height2, width2, height3, width3,
    height4, width4, height5, width5, height6, width6, height7, width7,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, NUMBERS: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    ROUND: tl.constexpr, QUERIES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out [N, Q, M, D]. NUMBERS: 0 locations and weights; 2 or 4 offsets around points or boxes, and logits."""
    # Big sizes multiply: everything that counts numbers is 64 bits wide.
    picture = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    query_q = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    channel_c = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    inside_q = query_q < queries
    inside_c = channel_c < depth
    row_step = heads.to(tl.int64) * depth
    samples: tl.constexpr = LEVELS * POINTS
    position_q = picture * position_picture + query_q * position_query + head * (samples * 2)
    share_q = picture * share_picture + query_q * share_query + head * samples
    reference_q = picture * reference_picture + query_q * reference_query
    value_c = value + picture * places * row_step + head * depth + channel_c
    padding += picture * places
    if NUMBERS > 0:
        weight_qs = softmax_of(shares, share_q, inside_q, samples, ROUND, WIDE)
    sum_qc = tl.zeros((QUERIES, CHANNELS), WIDE)
    start = height0 * 0
    for level in tl.static_range(LEVELS):
        height = pick(level, height0, height1, height2, height3, height4, height5, height6, height7)
        width = pick(level, width0, width1, width2, width3, width4, width5, width6, width7)
        for point in range(POINTS):
            s = level * POINTS + point
            x_q, y_q, _, _ = placed(
                positions, reference, position_q + 2 * s, reference_q + level * reference_level, inside_q,
                height, width, POINTS, NUMBERS, WIDE,
            )  # fmt: skip
            if NUMBERS > 0:
                weight_q = tl.sum(tl.where((tl.arange(0, ROUND) == s)[None, :], weight_qs, 0.0), 1)
            else:
                weight_q = tl.load(shares + share_q + s, mask=inside_q, other=0.0).to(WIDE)
            near_q = inside_q & (x_q > -1) & (y_q > -1) & (x_q < width) & (y_q < height)
            # Far places could leave the integers: they become 0 before they are turned into any.
            x_q = tl.where(near_q, x_q, 0.0)
            y_q = tl.where(near_q, y_q, 0.0)
            left_q = tl.floor(x_q)
            top_q = tl.floor(y_q)
            x_q -= left_q
            y_q -= top_q
            column_q = left_q.to(tl.int32)
            line_q = top_q.to(tl.int32)
            for corner in tl.static_range(4):
                row_q, counts_q = corner_at(
                    padding, column_q + corner % 2, line_q + corner // 2, near_q, start, height, width, MASKED
                )
                share_q_ = weight_q * (x_q if corner % 2 else 1 - x_q) * (y_q if corner // 2 else 1 - y_q)
                corner_qc = tl.load(
                    value_c[None, :] + (row_q * row_step)[:, None],
                    mask=counts_q[:, None] & inside_c[None, :],
                    other=0.0,
                )
                sum_qc += share_q_[:, None] * corner_qc.to(WIDE)
        start += height * width
    at_q = (picture * queries + query_q) * row_step + head * depth
    keep_qc = inside_q[:, None] & inside_c[None, :]
    tl.store(out + at_q[:, None] + channel_c[None, :], sum_qc.to(out.dtype.element_ty), mask=keep_qc)


@triton.jit(do_not_specialize=SIZES)
def backward_kernel(
    grad, value, positions, shares, reference, padding, grad_value, grad_reference, grad_positions, grad_shares,
    queries, places, heads, depth,
    position_picture, position_query, share_picture, share_query, reference_picture, reference_query, reference_level,
    height0, width0, height1, width1, height2, width2, height3, width3,
    height4, width4, height5, width5, height6, width6, height7, width7,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, NUMBERS: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    ROUND: tl.constexpr, QUERIES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Gradients in WIDE: of value and reference added to what is there, of positions and shares written."""
    picture = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    query_q = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    inside_q = query_q < queries
    row_step = heads.to(tl.int64) * depth
    samples: tl.constexpr = LEVELS * POINTS
    number_s = tl.arange(0, ROUND)
    position_q = picture * position_picture + query_q * position_query + head * (samples * 2)
    share_q = picture * share_picture + query_q * share_query + head * samples
    reference_q = picture * reference_picture + query_q * reference_query
    value_at = picture * places * row_step + head * depth
    out_q = (picture * queries + query_q) * row_step + head * depth
    made_q = ((picture * queries + query_q) * heads + head) * samples
    padding += picture * places
    if NUMBERS > 0:
        weight_qs = softmax_of(shares, share_q, inside_q, samples, ROUND, WIDE)
    of_weight_qs = tl.zeros((QUERIES, ROUND), WIDE)
    start = height0 * 0
    for level in tl.static_range(LEVELS):
        height = pick(level, height0, height1, height2, height3, height4, height5, height6, height7)
        width = pick(level, width0, width1, width2, width3, width4, width5, width6, width7)
        moved_x_q = tl.zeros((QUERIES,), WIDE)
        moved_y_q = tl.zeros((QUERIES,), WIDE)
        moved_w_q = tl.zeros((QUERIES,), WIDE)
        moved_h_q = tl.zeros((QUERIES,), WIDE)
        for point in range(POINTS):
            s = level * POINTS + point
            x_q, y_q, step_x_q, step_y_q = placed(
                positions, reference, position_q + 2 * s, reference_q + level * reference_level, inside_q,
                height, width, POINTS, NUMBERS, WIDE,
            )  # fmt: skip
            if NUMBERS > 0:
                weight_q = tl.sum(tl.where((number_s == s)[None, :], weight_qs, 0.0), 1)
            else:
                weight_q = tl.load(shares + share_q + s, mask=inside_q, other=0.0).to(WIDE)
            near_q = inside_q & (x_q > -1) & (y_q > -1) & (x_q < width) & (y_q < height)
            x_q = tl.where(near_q, x_q, 0.0)
            y_q = tl.where(near_q, y_q, 0.0)
            left_q = tl.floor(x_q)
            top_q = tl.floor(y_q)
            x_q -= left_q
            y_q -= top_q
            column_q = left_q.to(tl.int32)
            line_q = top_q.to(tl.int32)
            of_weight_q = tl.zeros((QUERIES,), WIDE)
            of_x_q = tl.zeros((QUERIES,), WIDE)
            of_y_q = tl.zeros((QUERIES,), WIDE)
            for corner in tl.static_range(4):
                row_q, counts_q = corner_at(
                    padding, column_q + corner % 2, line_q + corner // 2, near_q, start, height, width, MASKED
                )
                along_q = x_q if corner % 2 else 1 - x_q
                down_q = y_q if corner // 2 else 1 - y_q
                dot_q = tl.zeros((QUERIES,), WIDE)
                for first in range(0, depth, CHANNELS):
                    channel_c = first + tl.arange(0, CHANNELS)
                    keep_qc = counts_q[:, None] & (channel_c < depth)[None, :]
                    at_qc = value_at + (row_q * row_step)[:, None] + channel_c[None, :]
                    corner_qc = tl.load(value + at_qc, mask=keep_qc, other=0.0).to(WIDE)
                    rise_qc = tl.load(grad + out_q[:, None] + channel_c[None, :], mask=keep_qc, other=0.0).to(WIDE)
                    dot_q += tl.sum(rise_qc * corner_qc, 1)
                    by_qc = (weight_q * along_q * down_q)[:, None] * rise_qc
                    tl.atomic_add(grad_value + at_qc, by_qc, mask=keep_qc, sem="relaxed")
                of_weight_q += along_q * down_q * dot_q
                of_x_q += (1 if corner % 2 else -1) * down_q * dot_q
                of_y_q += (1 if corner // 2 else -1) * along_q * dot_q
            of_x_q *= weight_q
            of_y_q *= weight_q
            tl.store(grad_positions + 2 * (made_q + s), of_x_q * step_x_q, mask=inside_q)
            tl.store(grad_positions + 2 * (made_q + s) + 1, of_y_q * step_y_q, mask=inside_q)
            of_weight_qs += tl.where((number_s == s)[None, :], of_weight_q[:, None], 0.0)
            if NUMBERS > 0:
                moved_x_q += of_x_q * width
                moved_y_q += of_y_q * height
                if NUMBERS == 4:
                    x_offset_q = tl.load(positions + position_q + 2 * s, mask=inside_q, other=0.0).to(WIDE)
                    y_offset_q = tl.load(positions + position_q + 2 * s + 1, mask=inside_q, other=0.0).to(WIDE)
                    moved_w_q += of_x_q * width * x_offset_q * 0.5 / POINTS
                    moved_h_q += of_y_q * height * y_offset_q * 0.5 / POINTS
        if NUMBERS > 0:
            moved = grad_reference + reference_q + level * reference_level
            tl.atomic_add(moved, moved_x_q, mask=inside_q, sem="relaxed")
            tl.atomic_add(moved + 1, moved_y_q, mask=inside_q, sem="relaxed")
            if NUMBERS == 4:
                tl.atomic_add(moved + 2, moved_w_q, mask=inside_q, sem="relaxed")
                tl.atomic_add(moved + 3, moved_h_q, mask=inside_q, sem="relaxed")
        start += height * width
    if NUMBERS > 0:
        of_weight_qs = weight_qs * (of_weight_qs - tl.sum(weight_qs * of_weight_qs, 1)[:, None])
    known_qs = inside_q[:, None] & (number_s < samples)[None, :]
    tl.store(grad_shares + made_q[:, None] + number_s[None, :], of_weight_qs, mask=known_qs)
