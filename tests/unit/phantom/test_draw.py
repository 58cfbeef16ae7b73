"""Phantoms: the drawing shows what the truth says, and is the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.phantom.draw import FINDINGS, SIDES, ZONES, Phantom, draw, render
from serve.phantom.model import GRID
from serve.phantom.samples import LABELS, label_names, sample, square

phantoms = st.builds(
    Phantom,
    pneumothorax=st.sampled_from([None, *SIDES]),
    consolidation=st.none() | st.tuples(st.sampled_from(ZONES), st.sampled_from(SIDES)),
    cardiomegaly=st.booleans(),
    effusion=st.sampled_from([None, *SIDES]),
)
seeds = st.integers(0, 2**31)


@settings(max_examples=10, deadline=None)
@given(phantoms, seeds)
def test_the_same_seed_draws_the_same_image(phantom: Phantom, seed: int) -> None:
    assert draw(phantom, seed).tobytes() == draw(phantom, seed).tobytes()


@settings(max_examples=30, deadline=None)
@given(phantoms, seeds)
def test_there_is_a_mask_for_what_is_present_and_for_nothing_else(
    phantom: Phantom, seed: int
) -> None:
    _, masks = render(phantom, seed)
    assert set(masks) == {finding for finding in FINDINGS if phantom.has(finding)}
    assert all(mask.max() > 0.5 for mask in masks.values())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SIDES), seeds)
def test_the_patients_right_is_on_the_images_left(side: str, seed: int) -> None:
    for finding in ("pneumothorax", "effusion"):
        grey, masks = render(Phantom(**{finding: side}), seed)  # type: ignore[arg-type]
        columns = np.arange(grey.shape[1])
        centre = (masks[finding].sum(axis=0) * columns).sum() / masks[finding].sum()
        assert (centre < grey.shape[1] / 2) == (side == "right")


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_can_be_seen_where_its_mask_is(finding: str) -> None:
    value = {"consolidation": ("mid", "left"), "cardiomegaly": True}.get(finding, "left")
    brighter = []
    for seed in range(20):
        with_it, masks = render(Phantom(**{finding: value}), seed)  # type: ignore[arg-type]
        inside = masks[finding] > 0.5
        without, _ = render(Phantom(), seed)
        brighter.append(with_it[inside].mean() - without[inside].mean())
    # Air is darker than lung, everything else brighter; the exposure of two drawings differs.
    sign = -1 if finding == "pneumothorax" else 1
    assert sign * np.mean(brighter) > 20


def test_the_model_sees_a_square_padded_in_clips_mean_colour() -> None:
    image = draw(Phantom(), 3).resize((300, 200))
    pixels = np.asarray(square(image))
    assert pixels.shape == (336, 336, 3)
    assert pixels[5, 168].tolist() == [122, 116, 104]


def test_patch_labels_lie_where_the_finding_is() -> None:
    for seed in range(40):
        drawn = sample(seed)
        present = {LABELS[i] for i in range(len(LABELS)) if drawn.patches[i].any()}
        assert present == set(label_names(drawn.phantom).values())
        for name in present - {"cardiomegaly"}:
            columns = np.nonzero(drawn.patches[LABELS.index(name)] > 127)[0] % GRID
            assert (columns.mean() < GRID / 2) == name.endswith("right")
