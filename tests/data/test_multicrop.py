from dataclasses import replace

import numpy as np
import pytest
import torch

from evenfield.config import Crops, View
from evenfield.data.dataset import Reader
from evenfield.data.multicrop import (
    brightened,
    crop_sizes,
    in_other_light,
    make_views,
    random_boxes,
    random_shift,
    symmetries,
)
from evenfield.data.split import units
from evenfield.data.transforms import Normaliser, dihedral_codes, self_normalise, turn
from evenfield.errors import InputError
from evenfield.seeds import derive
from evenfield.types import Needs

PLAIN = View(flips=False, rotations=False)


def pixels(m=4, c=3, side=16, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 65_536, (m, c, side, side), dtype=np.uint16))


def views(raw, view, *, num_sources=1, seed=0, train=True, local=True, scale=None, shift=None):
    m, c = raw.shape[:2]
    one, zero = torch.ones(m, c), torch.zeros(m, c)
    return make_views(
        raw,
        one if scale is None else scale,
        zero if shift is None else shift,
        view,
        num_sources=num_sources,
        seed=seed,
        train=train,
        local=local,
    )


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("resize", [True, False])
def test_shapes_and_memory_of_any_number_of_channels(channels, resize):
    view = View(crops=Crops(global_side=12, local_side=6, num_local=4, resize=resize))
    large, small = views(pixels(6, channels), view, num_sources=2)
    assert large.shape == (3, 2, channels, 12, 12)
    assert small.shape == (3, 4, channels, 6, 6)
    assert large.dtype == small.dtype == torch.float32
    for x in (large, small):  # one forward pass reads them as they lie
        assert x.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert views(pixels(6, channels), view, local=False)[1] is None
    assert (
        views(pixels(6, channels), replace(view, crops=replace(view.crops, num_local=0)))[1] is None
    )


@pytest.mark.parametrize("resize", [True, False])
def test_crops_come_from_their_own_image_in_the_fixed_order(resize):
    """Constant images say whose crop it is: 1, 3-5 of the first, 2, 6-8 of the second."""
    value = torch.arange(1, 9, dtype=torch.float32).mul(1000)
    raw = value[:, None, None, None].expand(8, 2, 16, 16).to(torch.uint16)
    large, small = views(raw, View(crops=Crops(resize=resize)), num_sources=2)
    first, second = value[0::2], value[1::2]
    expected = torch.stack([first, second], 1)
    torch.testing.assert_close(large[:, :, 0, 0, 0], expected)
    wanted = torch.stack([first, first, first, second, second, second], 1)
    torch.testing.assert_close(small.mean((2, 3, 4)), wanted)
    large, small = views(raw, View(crops=Crops(resize=resize)), num_sources=1)
    torch.testing.assert_close(large.mean((2, 3, 4)), value[:, None].expand(8, 2))
    torch.testing.assert_close(small.mean((2, 3, 4)), value[:, None].expand(8, 6))


@pytest.mark.parametrize("resize", [True, False])
def test_a_view_of_the_whole_image_is_the_image_turned(resize):
    raw = pixels(40)
    crops = Crops(global_side=16, resize=resize, global_scale=(5.0, 5.0), num_local=0)
    large, _ = views(raw, View(crops=crops), seed=3)
    code = dihedral_codes(80, View(), derive(3, "views", "global"))
    assert len(set(code.tolist())) == 8
    expected = raw.float().repeat_interleave(2, 0)
    turn(expected, code)
    torch.testing.assert_close(large.flatten(0, 1), expected, rtol=1e-4, atol=0.5)
    if not resize:
        assert torch.equal(large.flatten(0, 1), expected)


def test_windows_are_windows_of_the_image():
    raw = pixels(2, 1, 10)
    crops = Crops(global_side=4, local_side=3, resize=False)
    for views_of_image, side in zip(views(raw, replace(PLAIN, crops=crops)), (4, 3), strict=True):
        for image, found in zip(raw.float(), views_of_image, strict=True):
            every = image[0].unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side, side)
            assert all((window[0] == every).all((1, 2)).any() for window in found)


def test_a_resampled_crop_of_a_ramp_is_a_ramp_of_its_box():
    """Bilinear sampling of a linear image is exact inside: slope = box side / crop side."""
    ramp = torch.arange(64).float()[:, None].expand(64, 64)
    raw = torch.stack([ramp, ramp.T])[None].expand(50, 2, 64, 64).to(torch.uint16)
    crops = Crops(global_side=8, global_scale=(0.25, 0.25), num_local=0)
    large, _ = views(raw, replace(PLAIN, crops=crops))
    rows = large[:, :, 0].diff(dim=2)
    columns = large[:, :, 1].diff(dim=3)
    for steps in (rows, columns):
        torch.testing.assert_close(
            steps, steps.mean((2, 3), keepdim=True).expand_as(steps), atol=1e-3, rtol=0
        )
    area = rows.mean((2, 3)) * columns.mean((2, 3)) * 64
    torch.testing.assert_close(area, torch.full_like(area, 1024), rtol=0.05, atol=0)


def test_boxes_have_the_asked_share_and_ratio_and_lie_inside():
    box = random_boxes(2000, 60, 80, (0.3, 0.5), seed=0)
    top, left, height, width = box.T
    share, ratio = height * width / 4800, width / height
    assert (box == box.round()).all()
    assert share.min() > 0.29
    assert share.max() < 0.51
    assert ratio.min() > 0.72
    assert ratio.max() < 1.39
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    assert len(torch.unique(top)) > 20


def test_shares_above_one_mean_the_whole_image_more_often():
    box = random_boxes(2000, 64, 64, (0.9, 1.1), seed=0)
    whole = (box == torch.tensor([0.0, 0.0, 64.0, 64.0])).all(1)
    assert 0 < whole.sum() < 2000
    assert (box[:, 2:] <= 64).all()
    assert (random_boxes(5, 40, 40, (2.0, 3.0), seed=0)[:, 2:] == 40).all()
    long = random_boxes(5, 30, 90, (2.0, 3.0), seed=0)  # its largest central part of ratio 4/3
    assert long.tolist() == [[0.0, 25.0, 30.0, 40.0]] * 5


def test_symmetries_are_the_eight_of_the_square():
    image = torch.randn(8, 1, 5, 5)
    expected = image.clone()
    turn(expected, torch.arange(8))
    place = (symmetries(5) * 5).floor().long()
    found = torch.stack([image[i, 0][place[i, ..., 0], place[i, ..., 1]] for i in range(8)])
    assert torch.equal(found, expected[:, 0])


def test_normalisation_is_that_of_the_image():
    raw = pixels(4)
    scale, shift = torch.rand(4, 3), torch.randn(4, 3)
    plain = views(raw, PLAIN)
    large, small = views(raw, PLAIN, scale=scale, shift=shift)
    for found, before in ((large, plain[0]), (small, plain[1])):
        expected = before * scale[:, None, :, None, None] + shift[:, None, :, None, None]
        torch.testing.assert_close(found, expected)


def test_shift_comes_before_the_normalisation_and_differs_from_crop_to_crop():
    """(x N(1, s) + N(0, s) on 0..1) normalised: gain and offset follow from two pixel values."""
    raw = torch.zeros(200, 2, 8, 8, dtype=torch.uint8)
    raw[..., 4:] = 255
    crops = Crops(global_side=8, resize=False, shift=0.1, shift_p=0.5, num_local=0)
    scale, shift = torch.full((200, 2), 1 / 25.5), torch.full((200, 2), -5.0)
    large, _ = views(raw, replace(PLAIN, crops=crops), scale=scale, shift=shift)
    offset = (large[..., 0, 0] + 5) / 10
    gain = (large[..., 0, -1] - large[..., 0, 0]) / 10
    moved = (gain - 1).abs() > 1e-6
    assert torch.equal(moved.all(2), moved.any(2))  # a crop is shifted in all channels, or in none
    assert moved.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert gain[moved].std().item() == pytest.approx(0.1, abs=0.02)
    assert offset[moved].std().item() == pytest.approx(0.1, abs=0.02)
    assert gain[moved].mean().item() == pytest.approx(1, abs=0.02)
    assert torch.unique(gain[moved]).numel() == moved.sum()


def test_no_shift_is_exactly_none():
    gain, offset = random_shift(3, 2, 4, Crops(), torch.Generator().manual_seed(0))
    assert (gain == 1).all()
    assert (offset == 0).all()


def test_brightness_stays_between_0_and_1_and_touches_half_of_the_channels_of_global_crops():
    unit = torch.rand(50, 2, 3, 4, 4)
    found = brightened(unit.clone(), 0.3, torch.Generator().manual_seed(0))
    assert found.min() >= 0
    assert found.max() <= 1
    changed = ((found - unit).abs().amax((3, 4)) > 1e-6).float().mean().item()
    assert changed == pytest.approx(0.5, abs=0.1)
    view = replace(PLAIN, crops=Crops(brightness=0.1))
    bright, plain = views(pixels(), view), views(pixels(), PLAIN)
    assert not torch.equal(bright[0], plain[0])
    torch.testing.assert_close(bright[1], plain[1])


def test_colour_and_jitter_reach_the_crops_one_by_one():
    raw = pixels(1).expand(6, 3, 16, 16)
    whole = Crops(global_side=16, resize=False, num_local=0)
    for change in ({"colour": 0.5}, {"jitter": 0.5}):
        large, _ = views(raw, replace(PLAIN, crops=whole, **change))
        assert torch.unique(large[:, :, 0].mean((2, 3))).numel() == 12
    with pytest.raises(InputError, match="stain jitter"):
        views(pixels(2, 2), replace(PLAIN, hed=0.1))


def test_light_changes_in_training_only():
    view = replace(PLAIN, jitter=0.5, colour=0.5, crops=Crops(shift=0.1, brightness=0.1))
    judged = views(pixels(), view, train=False)
    plain = views(pixels(), PLAIN, train=False)
    for one, other in zip(judged, plain, strict=True):
        assert torch.equal(one, other)
    crop = torch.rand(2, 3, 3, 4, 4)
    same = in_other_light(
        crop.clone(), torch.ones(2, 3), torch.zeros(2, 3), PLAIN, 1.0, 0, local=False
    )
    torch.testing.assert_close(same, crop)


def test_self_normalised_crops_forget_gain_and_offset():
    view = replace(PLAIN, self_normalise=True)
    raw = pixels()
    ours = views(raw, view)
    other = views(raw, view, scale=torch.full((4, 3), 3.0), shift=torch.full((4, 3), 7.0))
    for one, two in zip(ours, other, strict=True):
        torch.testing.assert_close(one, two, atol=2e-3, rtol=1e-3)
        torch.testing.assert_close(one.mean((3, 4)), torch.zeros(one.shape[:3]), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            one.std((3, 4), correction=0), torch.ones(one.shape[:3]), atol=1e-4, rtol=0
        )
    constant = self_normalise(torch.full((1, 2, 4, 4), 9.0))
    assert torch.equal(constant, torch.zeros(1, 2, 4, 4))


def test_equal_seeds_equal_bits_and_the_raw_images_stay():
    view = View(jitter=0.2, crops=Crops(shift=0.1, brightness=0.05))
    raw = pixels()
    before = raw.clone()
    one, two, other = views(raw, view, seed=1), views(raw, view, seed=1), views(raw, view, seed=2)
    assert torch.equal(raw, before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


def test_sides_follow_the_view_and_wrong_ones_are_refused():
    assert crop_sizes(View(), 64, 80) == (64, 32)
    assert crop_sizes(View(crop=48), 64, 80) == (48, 24)
    assert crop_sizes(View(crops=Crops(within=40, local_side=10)), 64, 80) == (40, 10)
    assert crop_sizes(View(crops=Crops(global_side=224)), 64, 80) == (224, 112)
    for match, crops in [
        ("within 99", Crops(within=99)),
        ("global crops of 70 pixels", Crops(global_side=70, resize=False)),
        ("local crops of 70 pixels", Crops(local_side=70, resize=False)),
        ("the scale of local crops", Crops(local_scale=(0.0, 0.5))),
        ("the scale of global crops", Crops(global_scale=(0.9, 0.5))),
        ("-1 local crops", Crops(num_local=-1)),
    ]:
        with pytest.raises(InputError, match=match):
            crop_sizes(View(crops=crops), 64, 80)
    with pytest.raises(InputError, match="5 local crops of a pair"):
        views(pixels(), View(crops=Crops(num_local=5)), num_sources=2)


def reader(screen, view, needs):
    coded = units(screen.manifest, screen.roles)
    normaliser = Normaliser.fit(screen, np.arange(screen.num_images), view)
    return Reader(screen, coded, view, normaliser, torch.device("cpu"), needs)


def test_a_reader_gives_views_partners_and_their_domains(tiny):
    needs = Needs(views=True, local_views=True, pairs=True)
    view = View(crops=Crops(global_side=24, local_side=16, within=28))
    read = reader(tiny, view, needs)
    rows = np.array([[5, 100], [7, 7], [200, 3]])
    batch = read.batch(rows, seed=4, train=True)
    assert batch.row.tolist() == [5, 7, 200]
    assert batch.partner.tolist() == [100, 7, 3]
    assert batch.partner_domain.tolist() == read.coded.domain[[100, 7, 3]].tolist()
    assert batch.domain.tolist() == read.coded.domain[[5, 7, 200]].tolist()
    assert torch.equal(batch.image, batch.global_views[:, 0])
    assert [tuple(x.shape[1:]) for x in batch.views] == [
        (2, tiny.shape[0], 24, 24),
        (6, tiny.shape[0], 16, 16),
    ]
    own, other = read.views(np.array([5, 7, 200])), read.views(rows[:, 0])
    assert torch.equal(own[0], other[0])
    part = batch[torch.tensor([2, 0])]
    assert torch.equal(part.local_views, batch.local_views[[2, 0]])
    assert part.to("cpu").partner.tolist() == [3, 100]


def test_a_judged_batch_holds_the_image_as_deployed(tiny):
    read = reader(tiny, View(crop=20), Needs(views=True))
    batch = read.batch(np.array([3, 9]))
    assert batch.image.shape[-1] == 20
    assert torch.equal(batch.image, read.images(np.array([3, 9])))
    assert batch.local_views is None
    assert batch.partner.tolist() == [3, 9]
    assert torch.equal(batch.global_views, read.batch(np.array([3, 9])).global_views)


def test_methods_without_views_get_none(tiny):
    batch = reader(tiny, View(), None).batch(np.array([3, 9]), train=True)
    assert batch.global_views is None
    assert batch.partner is None
    assert len(batch[:1]) == 1
    with pytest.raises(InputError, match="holds no views"):
        _ = batch.views
