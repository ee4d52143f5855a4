"""Molmo's and Molmo2's points: one tag for all of a phrase, and which picture each belongs to."""

from __future__ import annotations

from mmchat.dialect import DIALECTS
from mmchat.dialect.points import molmo2_groups, molmo2_tracks, pictures
from mmchat.geometry import Box, Point

POINTS = [Point(0.6, 0.4), Point(0.1, 0.9)]


def test_molmo_writes_all_points_of_a_phrase_in_one_tag_from_left_to_right():
    written = DIALECTS["molmo"].write(POINTS, "Dogs")
    assert written == '<points x1="10.0" y1="90.0" x2="60.0" y2="40.0" alt="dogs">dogs</points>'
    answer = DIALECTS["molmo"].read(written)
    assert answer.text == "dogs" and answer.spans[0].places == (Point(0.1, 0.9), Point(0.6, 0.4))


def test_molmo2_counts_its_points():
    written = DIALECTS["molmo2"].write([*POINTS, Box(0.2, 0.2, 0.4, 0.4)], "dogs")
    assert written == '<points coords="1 1 100 900 2 300 300 3 600 400">dogs</points>'
    assert len(DIALECTS["molmo2"].read(written).spans[0].places) == 3


def test_points_know_their_picture():
    written = molmo2_groups([(1, [("100", "900")]), (2, [("600", "400"), ("700", "400")])], "dogs", apart=";")
    assert written == '<points coords="1 1 100 900;2 2 600 400 3 700 400">dogs</points>'
    answer = DIALECTS["molmo2"].read(f"See {written} and <point x='61.5' y='40.2'>a cat</point>")
    assert pictures(f"See {written} and <point x='61.5' y='40.2'>a cat</point>", answer)[0] == [1.0, 2.0, 2.0]


def test_a_track_keeps_the_number_of_a_thing():
    groups = [(0.0, {"b": ("900", "100")}), (0.5, {"a": ("100", "100"), "b": ("800", "100")})]
    assert molmo2_tracks(groups, "dogs") == '<tracks coords="0.0 1 900 100\t0.5 1 800 100 2 100 100">dogs</tracks>'
