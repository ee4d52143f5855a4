"""Places, frames and opening pictures."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmchat.dialect import DIALECTS, Scene, home
from mmchat.geometry import (
    Box,
    Frame,
    Mask,
    Placement,
    Point,
    Polygon,
    native,
    open_image,
    outline,
    region,
    region_in,
    tiling,
)
from mmchat.picture import narrowed

TABLES = Path(__file__).parent / "tables"
SHAPES = [(12, 1), (6, 1), (4, 1), (3, 2), (4, 3), (1, 1), (3, 4), (2, 3), (1, 2), (1, 4), (1, 6), (1, 12)]
WAYS = ["squash", "pad", "pad_end", "crop", "native", "tiles"]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def header_only(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


# places


def test_iou_of_two_overlapping_boxes_is_shared_area_over_union() -> None:
    assert Box(0, 0, 0.5, 1).iou(Box(0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert Box(0, 0, 0.5, 0.5).iou(Box(0.5, 0.5, 1, 1)) == 0
    assert Box(0, 0, 0, 0).iou(Box(0, 0, 0, 0)) == 0


def test_pixels_and_back_is_the_same_box() -> None:
    box = Box.from_pixels((100, 120, 300, 360), (640, 480))
    assert box.pixels((640, 480)) == pytest.approx((100, 120, 300, 360))
    assert (box.centre.x, box.centre.y) == pytest.approx((200 / 640, 0.5))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_place_refuses_numbers_that_are_not_finite(number: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Box(0, 0, number, 1)
    with pytest.raises(ValueError, match="finite"):
        Point(number, 0)


def test_a_mask_survives_its_run_lengths() -> None:
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (5, 7), (30, 2)]:
        for array in (rng.random(shape) < 0.4, np.zeros(shape, bool), np.ones(shape, bool)):
            assert np.array_equal(Mask.from_array(array).array(), array)


def test_a_mask_with_runs_that_do_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="add up to 12"):
        Mask((4, 3), (5, 6))


# fitting


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_into_and_back_is_the_same_place(shape: tuple[int, int], way: str) -> None:
    size = (shape[0] * 61, shape[1] * 53)
    placement = Frame(336, way).place(size)
    for place in (Box(0.1, 0.2, 0.7, 0.9), Point(0.3, 0.8), Polygon((Point(0, 0), Point(1, 0), Point(0.4, 1)))):
        assert flat(placement.back(placement.into(place))) == pytest.approx(flat(place), abs=1e-9)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_placement_says_where_a_painted_patch_went(shape: tuple[int, int], way: str) -> None:
    width, height = shape[0] * 40, shape[1] * 40
    patch = (round(width * 0.4), round(height * 0.4), round(width * 0.6), round(height * 0.6))
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), patch)
    values, placement = Frame(224, way, fill=(0, 0, 0)).fit(image)
    rows, columns = np.nonzero(values[0] > 0.5)
    fitted = (values.shape[2], values.shape[1])
    assert placement.fitted == fitted
    seen = Box.from_pixels((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), fitted)
    told = placement.into(Box.from_pixels(patch, image.size)).clipped()
    assert seen.pixels(fitted) == pytest.approx(told.pixels(fitted), abs=1.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_view_of_a_tiled_picture_shows_its_part(shape: tuple[int, int]) -> None:
    """The tiles cut from the fitted picture hold what their placements say, and the last view shows the whole."""
    width, height = size = (shape[0] * 40, shape[1] * 40)
    patch = (round(width * 0.3), round(height * 0.3), round(width * 0.8), round(height * 0.8))
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), patch)
    frame = Frame(112, "tiles")
    values, placement = frame.fit(image)
    views = frame.views(size)
    across, down = tiling(size, side=112)
    assert len(views) == across * down + (across * down > 1)
    box = Box.from_pixels(patch, size)
    for number, view in enumerate(views[: across * down]):
        row, column = divmod(number, across)
        tile = values[0, row * 112 : row * 112 + 112, column * 112 : column * 112 + 112] > 0.5
        seen = view.into(box).clipped()
        if not tile.any() or seen.area <= 0:
            assert tile.mean() < 0.02 and seen.area < 0.02
            continue
        rows, columns = tile.nonzero()
        painted = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert seen.pixels((112, 112)) == pytest.approx(painted, abs=1.01)
        assert flat(view.back(view.into(box))) == pytest.approx(flat(box), abs=1e-9)
    assert views[-1].scale == (1.0, 1.0)


@pytest.mark.parametrize(("name", "way"), [("qwen2_5_vl", "native"), ("internvl", "tiles"), ("qwen3_vl", "native")])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_models_numbers_come_home_through_its_frame(shape: tuple[int, int], name: str, way: str) -> None:
    size = (shape[0] * 61, shape[1] * 53)
    placement = Frame(448, way).place(size)
    box = Box(0.11, 0.23, 0.71, 0.97)
    scene = Scene(size=placement.fitted)
    answer = home(DIALECTS[name].read(DIALECTS[name].write((placement.into(box),), "it", scene), scene), placement)
    step = 1 / min(*placement.fitted, 1000)
    assert flat(answer.spans[0].places[0]) == pytest.approx(flat(box), abs=step)


def test_a_padded_mask_comes_home() -> None:
    array = np.zeros((40, 80), bool)
    array[10:20, 30:60] = True
    placement = Frame(80, "pad").place((80, 40))
    mask = placement.into(Mask.from_array(array))
    assert mask.size == (80, 80)
    assert flat(outline(mask)) == pytest.approx(flat(placement.into(Box.from_pixels((30, 10, 60, 20), (80, 40)))))
    assert np.array_equal(placement.back(mask).array(), array)


def test_an_odd_pad_is_rounded_down_as_llava_does() -> None:
    assert Frame(336, "pad").place((11, 4)).offset == (0.0, 3 / 11)


def test_a_picture_1_to_1000_is_fitted_without_growing() -> None:
    for way in ("squash", "pad", "pad_end", "crop"):
        values, _ = Frame(32, way).fit(Image.new("RGB", (20_000, 20)))
        assert values.shape == (3, 32, 32) and values.dtype == np.float32


@pytest.mark.parametrize("case", ["preprocess_pad", "preprocess_plain"])
def test_preprocessing_equals_the_recorded_clip_processor(case: str) -> None:
    config = json.loads((TABLES / f"{case}.json").read_text())
    tensors = np.load(TABLES / f"{case}.npz")
    frame = Frame(config["side"], config["way"], mean=tuple(config["mean"]), std=tuple(config["std"]))
    for number in range(config["pictures"]):
        values, _ = frame.fit(Image.fromarray(tensors[f"image_{number}"]))
        assert np.abs(values - tensors[f"pixels_{number}"]).max() <= 1e-5


# regions


def test_a_dragged_box_is_ordered_and_clipped() -> None:
    assert region({"kind": "box", "box": [0.9, 0.8, -0.2, 0.1]}).box == Box(0, 0.1, 0.9, 0.8)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"kind": "box", "box": [1.2, 0.1, 1.5, 0.3]}, "no area"),
        ({"kind": "box", "box": [0.2, 0.1, 0.2, 0.3]}, "no area"),
        ({"kind": "box", "box": [0.2, 0.1, float("nan"), 0.3]}, "finite"),
        ({"kind": "box", "box": [0.2, 0.1, "0.3", 0.3]}, "four numbers"),
        ({"kind": "box", "box": [0.2, 0.1, 0.3]}, "four numbers"),
        ({"kind": "box"}, "four numbers"),
        ({"kind": "point", "points": [[2, 2]]}, "outside"),
        ({"kind": "point", "points": []}, "points"),
        ({"kind": "polygon", "points": [[0, 0], [1, 1]]}, "3 or more"),
        ({"kind": "star"}, "unknown kind"),
        ({"kind": ["box"]}, "unknown kind"),
        ({"kind": "mask", "mask": {"size": [2, 2], "runs": [4]}}, "empty"),
        ({"kind": "mask", "mask": {"size": [2, 2], "runs": [1, 1]}}, "add up"),
        ({"kind": "mask", "mask": {"size": [1e9, 2], "runs": [1, 1]}}, "whole numbers"),
        ({"kind": "box", "box": [0, 0, 1, 1], "image": -1}, "picture"),
        ({"kind": "box", "box": [0, 0, 1, 10**400]}, "finite"),
        ({"kind": "scribble", "points": [[0.5, 0.5]] * 2001}, "2001 points, at most 2000"),
    ],
)
def test_a_bad_region_is_refused_in_one_sentence_that_names_it(data: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        region(data, 3)
    assert str(caught.value).startswith("Region 3")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            {"kind": "scribble", "points": [[64, 48], [320, 240]]},
            {"kind": "scribble", "points": [[0.1, 0.1], [0.5, 0.5]]},
        ),
        (
            {"kind": "polygon", "box": [64, 48, 320, 240], "points": [[64, 48], [320, 48], [64, 240]]},
            {"kind": "polygon", "points": [[0.1, 0.1], [0.5, 0.1], [0.1, 0.5]]},
        ),
        ({"kind": "point", "box": [64, 48, 64, 48], "point": [64, 48]}, {"kind": "point", "points": [[0.1, 0.1]]}),
        ({"box": [64, 48, 320, 240], "image": 1}, {"kind": "box", "box": [0.1, 0.1, 0.5, 0.5], "image": 1}),
        ([64, 48, 320, 240], {"kind": "box", "box": [0.1, 0.1, 0.5, 0.5]}),
    ],
)
def test_a_region_is_given_in_pixels_too_as_an_answer_gives_its_places(
    given: object, wanted: dict[str, object]
) -> None:
    assert region_in(given, (640, 480)) == region(wanted)  # type: ignore[arg-type]


def test_a_mask_has_cells_of_its_own_and_no_pixels() -> None:
    cells = {"kind": "mask", "mask": {"size": [4, 3], "runs": [5, 2, 5]}}
    assert region_in(cells, (640, 480)) == region(cells)


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "scribble", "points": [[64]]},
        {"kind": "scribble", "points": "64,48"},
        {"kind": "polygon", "points": [[1, 2], [3, 4], None]},
        {"kind": "scribble", "points": [[1, 2]] * 5000},
        {"kind": "box", "box": [1, 2, 3, "4"]},
        {"kind": {}, "points": [[1, 2]]},
        {"kind": "mask", "mask": [[1]]},
        {},
    ],
)
def test_a_wrong_region_in_pixels_is_refused_in_one_sentence(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="^Region 2") as caught:
        region_in(given, (640, 480), 2)
    assert "\n" not in str(caught.value)


# opening


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_applied_once(orientation: int) -> None:
    marked = Image.new("RGB", (40, 20))
    marked.paste((255, 0, 0), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(marked, exif=exif)
    upright = open_image(data)
    assert np.array_equal(np.asarray(upright), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
    assert np.array_equal(np.asarray(open_image(upright)), np.asarray(upright))


def palette(**options: object) -> bytes:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    return encoded(image, **options)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (encoded(Image.fromarray(np.full((4, 5), 32768, np.uint16))), (128, 128, 128)),
        (encoded(Image.fromarray(np.full((4, 5), 0.5, np.float32)), "TIFF"), (128, 128, 128)),
        (palette(transparency=0), (255, 255, 255)),
        (palette(), (255, 0, 0)),
        (encoded(Image.new("LA", (2, 2), (0, 128))), (127, 127, 127)),
        (encoded(Image.new("RGBA", (2, 2), (9, 9, 9, 0))), (255, 255, 255)),
        (encoded(Image.new("1", (2, 2), 1)), (255, 255, 255)),
        (
            encoded(Image.new("RGB", (3, 3), (200, 30, 10)), save_all=True, append_images=[Image.new("RGB", (3, 3))]),
            (200, 30, 10),
        ),
    ],
    ids=["cmyk", "16 bit", "float", "palette with alpha", "palette", "grey with alpha", "clear", "1 bit", "animated"],
)
def test_every_kind_of_picture_becomes_plain_rgb(data: bytes, colour: tuple[int, int, int]) -> None:
    image = open_image(data)
    assert image.mode == "RGB" and not image.info
    assert np.abs(np.array(image.getpixel((0, 0))) - colour).max() <= 1


NOISE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (b"", "0 bytes"),
        (b"hello", "not a picture"),
        (b"<svg/>", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (NOISE[:700], "cut off"),
        (header_only(20_000, 20_000), "megapixels"),
        (header_only(10_100, 10_000), "10100 x 10000"),
        (header_only(2**31 - 1, 2**31 - 1), "megapixels"),
        ("no/such/picture.png", "no picture"),
        (None, "path, bytes"),
        (io.StringIO("x"), "binary"),
    ],
)
def test_what_is_no_usable_picture_is_one_sentence_with_a_remedy(source: object, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        open_image(source)
    assert str(caught.value).endswith(".") and ":" in str(caught.value) or source is None or says == "binary"


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="megapixels"):
        open_image(header_only(10_100, 10_000))


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (200, 5)])
def test_tiny_and_thin_pictures_open_and_fit(size: tuple[int, int]) -> None:
    image = open_image(encoded(Image.new("RGB", size)))
    assert image.size == size
    assert Frame(16).fit(image)[0].shape == (3, 16, 16)


def flat(place: object) -> list[float]:
    if isinstance(place, Polygon):
        return [number for point in place.points for number in (point.x, point.y)]
    return [float(number) for number in vars(place).values()]


def test_placement_is_a_value() -> None:
    assert Frame(8).place((4, 2)) == Placement((4, 2), (8, 8), (1.0, 0.5), (0.0, 0.25))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1000, 1000), (980, 980)), ((480, 640), (476, 644)), ((97, 211), (84, 224)), ((14, 14), (56, 56))],
)
def test_native_sizes_are_multiples_within_the_limits(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert native(size, most=14 * 14 * 4 * 1280) == wanted


def test_a_thread_of_a_picture_has_no_native_size() -> None:
    with pytest.raises(ValueError, match="200 times"):
        native((20000, 50))


@pytest.mark.parametrize(("size", "wanted"), [((934, 204), (5, 1)), ((1727, 1317), (4, 3)), ((448, 448), (1, 1))])
def test_tiles_follow_the_shape_of_the_picture(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert tiling(size) == wanted


@pytest.mark.parametrize("size", [(1920, 1080), (1001, 1003), (300, 9000)])
@pytest.mark.parametrize("cores", [1, 3])
def test_a_large_picture_resized_in_bands_has_the_same_pixels(size, cores, monkeypatch):
    monkeypatch.setattr("mmchat.picture.os.cpu_count", lambda: cores)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    for way in (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS):
        assert np.array_equal(narrowed(image, 336, way), image.resize((336, size[1]), way))
