import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from evenfield.data.decode import check_image, read_image
from evenfield.errors import InputError


def plane(dtype=np.uint16):
    return np.random.default_rng(3).integers(1, 250, (40, 30)).astype(dtype)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "zstd"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_is_read_exactly(tmp_path, compression, dtype):
    tifffile.imwrite(tmp_path / "a.tiff", plane(dtype), compression=compression, rowsperstrip=7)
    image = read_image(tmp_path / "a.tiff", num_channels=1)
    np.testing.assert_array_equal(image, plane(dtype)[None])
    assert image.dtype == dtype


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_is_read_exactly(tmp_path, dtype):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(plane(dtype)))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", num_channels=1)[0], plane(dtype))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["none", "lzw", "deflate", "png"]),
    share=st.floats(0, 0.97),
)
def test_a_truncated_file_is_refused_or_whole(tmp_path_factory, kind, share):
    """Never zeros for what is not there."""
    path = tmp_path_factory.mktemp("t") / ("a.png" if kind == "png" else "a.tif")
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(plane()))
    else:
        tifffile.imwrite(
            path, plane(), compression=None if kind == "none" else kind, rowsperstrip=9
        )
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match=r"a\.(png|tif): "):
        read_image(path, num_channels=1)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), kind=st.sampled_from(["lzw", "deflate", "png"]))
def test_a_damaged_byte_crashes_nothing(tmp_path_factory, data, kind):
    path = tmp_path_factory.mktemp("t") / ("a.png" if kind == "png" else "a.tif")
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(plane()))
    else:
        tifffile.imwrite(path, plane(), compression=kind)
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw))
    try:
        image = read_image(path, num_channels=1)
    except InputError:
        return
    assert image.ndim == 3
    assert kind != "png"  # its checksums let nothing pass


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg", "a"])
def test_a_file_that_is_not_there_or_of_another_kind(tmp_path, name):
    with pytest.raises(InputError, match="a"):
        read_image(tmp_path / name, num_channels=1)


def test_wrong_number_of_channels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 8, 9), np.uint8), photometric="minisblack")
    for num in (1, 2, 4):
        with pytest.raises(InputError, match="does not hold"):
            read_image(tmp_path / "a.tif", num_channels=num)


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "NaN"), (np.inf, "NaN"), (-np.inf, "NaN"), (5.0, "empty")]
)
def test_images_that_measured_nothing(value, text):
    image = np.random.default_rng(0).random((2, 4, 4))
    check_image(image, "x", ("DNA", "ER"))
    if text == "NaN":
        image[1, 2, 3] = value
    else:
        image[1] = value
    with pytest.raises(InputError, match=f"x: channel ER .*{text}"):
        check_image(image, "x", ("DNA", "ER"))
    with pytest.raises(InputError, match="1 channels"):
        check_image(image, "x", ("DNA",))
