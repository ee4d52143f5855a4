"""Painting places and heat."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmchat import paint
from mmchat.dialect import Grounded, Span
from mmchat.geometry import Box, Frame, Mask, Point, Polygon, Region

GREY = Image.new("RGB", (300, 200), (128, 128, 128))


def changed(painted: Image.Image, plain: Image.Image = GREY) -> np.ndarray:
    """bool [height, width]: where the pixels differ."""
    return (np.asarray(painted).astype(int) != np.asarray(plain)).any(axis=2)


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)])


def luminance(colour: np.ndarray) -> float:
    part = colour / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_box_is_drawn_on_its_edges_and_nowhere_else() -> None:
    marks = changed(paint.places(GREY, [("", (Box(0.2, 0.25, 0.8, 0.75),))]))
    assert marks[50, 60:240].all() and marks[150, 60:240].all() and marks[50:150, 60].all() and marks[50:150, 240].all()
    assert not marks[60:140, 70:230].any() and not marks[:40].any() and not marks[160:].any()


def test_all_places_of_a_phrase_share_its_colour_and_phrases_differ() -> None:
    groups = [("", (Box(0.1, 0.1, 0.3, 0.3), Box(0.1, 0.6, 0.3, 0.9))), ("", (Box(0.6, 0.1, 0.9, 0.3),))]
    painted = np.asarray(paint.places(GREY, groups))
    assert (painted[40, 30] == rgb(paint.PALETTE[0])).all() and (painted[150, 30] == rgb(paint.PALETTE[0])).all()
    assert (painted[40, 180] == rgb(paint.PALETTE[1])).all()


@pytest.mark.parametrize(
    "place", [Point(0.5, 0.5), Polygon((Point(0.3, 0.3), Point(0.7, 0.3), Point(0.5, 0.8))), Mask((2, 2), (1, 1, 0, 2))]
)
def test_points_outlines_and_masks_are_drawn_where_they_are(place: object) -> None:
    marks = changed(paint.places(GREY, [("", (place,))]))
    assert marks[100, 150] or marks[150, 250]
    assert not marks[10, 10] and 0 < marks.mean() < 0.9


def test_more_phrases_than_colours_begin_again() -> None:
    assert paint.colour(len(paint.PALETTE)) == paint.PALETTE[0]
    paint.places(GREY, [(f"phrase {n}", (Box(0.1, 0.1, 0.2, 0.2),)) for n in range(60)])


def test_an_answer_is_painted_with_its_phrases_as_labels() -> None:
    answered = Grounded("a dog", (Span(2, 5, (Box(0.2, 0.5, 0.8, 0.9),)),))
    bare = paint.places(GREY, [("", (Box(0.2, 0.5, 0.8, 0.9),))])
    assert changed(paint.answer(GREY, answered), bare)[70:100, 60:110].any()


def test_the_users_regions_carry_their_numbers() -> None:
    assert changed(paint.regions(GREY, [Region("box", Box(0.2, 0.5, 0.8, 0.9))])).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_pictures_are_painted(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    groups = [("a label", (Box(0, 0, 1, 1), Point(0.5, 0.5), Polygon((Point(0, 0), Point(1, 0), Point(1, 1)))))]
    assert paint.places(image, groups).size == size
    assert paint.heat(image, np.ones((13, 13)), Frame(64).place(size)).size == size


def test_the_picture_itself_is_left_as_it_was() -> None:
    paint.places(GREY, [("", (Box(0, 0, 1, 1),))])
    paint.heat(GREY, np.ones((2, 2)), Frame(8).place(GREY.size))
    assert not changed(GREY, Image.new("RGB", GREY.size, (128, 128, 128))).any()


# heat


def test_heat_lies_where_the_model_saw_it() -> None:
    """A hot cell of the padded square is hottest at its place in the original."""
    black = Image.new("RGB", (400, 200))
    values = np.zeros((8, 8))
    values[4, 6] = 1  # centre (6.5 / 8, 4.5 / 8) of the square: x 0.8125, y (0.5625 * 400 - 100) / 200 of the picture
    painted = np.asarray(paint.heat(black, values, Frame(64).place(black.size), strength=1.0)).sum(axis=2)
    row, column = np.unravel_index(painted.argmax(), painted.shape)
    assert abs(column - 0.8125 * 400) <= 1 and abs(row - 125) <= 1


def test_heat_in_the_padding_is_cut_off() -> None:
    black = Image.new("RGB", (400, 200))
    values = np.zeros((8, 8))
    values[0] = values[7] = 1
    cold = paint.heat(black, np.zeros((8, 8)), Frame(64).place(black.size))
    assert not changed(paint.heat(black, values, Frame(64).place(black.size)), cold).any()


def test_colours_are_taken_as_they_are() -> None:
    values = np.zeros((4, 4, 3))
    values[:, :, 1] = 1
    painted = np.asarray(paint.heat(GREY, values, Frame(8, "squash").place(GREY.size), strength=1.0))
    assert (painted == (0, 255, 0)).all()


def test_a_map_is_linear_between_the_centres_of_its_cells() -> None:
    values = np.array([[0.0, 1.0]])
    placement = Frame(8, "squash").place((100, 1))
    colours = np.repeat(values[:, :, None], 3, axis=2)
    painted = np.asarray(paint.heat(Image.new("RGB", (100, 1)), colours, placement, strength=1.0))[0, :, 0]
    assert painted[0] == 0 and painted[99] == 255 and abs(int(painted[50]) - 130) <= 3
    assert (np.diff(painted.astype(int)) >= 0).all()


def test_numbers_that_are_no_heat_do_no_harm() -> None:
    values = np.array([[np.nan, np.inf], [-3.0, 7.0]])
    assert paint.heat(GREY, values, Frame(8, "squash").place(GREY.size)).size == GREY.size
    with pytest.raises(ValueError, match="height, width"):
        paint.heat(GREY, np.zeros(3), Frame(8).place(GREY.size))


# the palette


@pytest.mark.parametrize("colour", paint.PALETTE)
def test_every_colour_stands_out_from_white_and_from_near_black(colour: str) -> None:
    level, dark = luminance(rgb(colour)), luminance(np.array([17, 24, 39]))
    assert 1.05 / (level + 0.05) >= 3 and (level + 0.05) / (dark + 0.05) >= 3


def test_neighbours_in_the_palette_differ_for_eyes_that_do_not_tell_red_from_green() -> None:
    # Viénot, Brettel and Mollon 1999, deuteranopia, on linear RGB.
    blind = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = [blind @ ((rgb(colour) / 255) ** 2.2) for colour in paint.PALETTE]
    for one, other in zip(seen[:6], seen[1:7], strict=True):
        assert np.abs(np.clip(one, 0, 1) ** (1 / 2.2) - np.clip(other, 0, 1) ** (1 / 2.2)).max() > 0.12


def test_the_palette_is_at_hand_without_the_drawing_libraries() -> None:
    code = "import sys, mmchat.paint; print([n for n in ('cv2', 'supervision', 'gradio', 'torch') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
