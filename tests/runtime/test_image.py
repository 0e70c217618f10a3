"""Pixels: equal to the official preprocessing, for every kind of source, and hostile files refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import runtime.image
from runtime.errors import ConfigError, InputError
from runtime.image import frame_hash, load_image, prepare, prepare_views, split_regions
from runtime.spec import RegionSpec, ViewSpec, VisionSpec

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VIEWS = {
    "clip": ViewSpec("clip", 336, 336, CLIP_MEAN, CLIP_STD, "bicubic", "crop", "pixels"),
    "dino": ViewSpec("dino", 448, 448, *IMAGENET, "bicubic", "stretch", "pixels"),
    "siglip": ViewSpec("siglip", 448, 448, *HALF, "bicubic", "stretch", "pixels"),
    "sam": ViewSpec("sam", 1024, 1024, *IMAGENET, "bicubic", "stretch", "pixels"),
}
SMALL_CROP = replace(VIEWS["clip"], height=24, width=24)
TILE = RegionSpec(64, "lanczos")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", ["a", "b", "c"])
@pytest.mark.parametrize("view", VIEWS)
def test_official_pixels(golden: Path, name: str, view: str) -> None:
    wanted = np.load(golden / f"pre_{name}.npz")
    pixels = prepare(load_image(golden / f"pre_{name}.png"), VIEWS[view])
    assert pixels.dtype == np.float32
    assert pixels.shape == tuple(wanted[f"{view}_shape"])
    stride = int(wanted[f"{view}_stride"])
    np.testing.assert_allclose(pixels[:, ::stride, ::stride], wanted[f"{view}_sub"], rtol=0, atol=1e-5)
    exact = pixels.astype(np.float64)
    found = {"mean": exact.mean((1, 2)), "std": exact.std((1, 2))}
    found |= {"row_mean": exact.mean((0, 2)), "col_mean": exact.mean((0, 1))}
    for key, value in found.items():
        np.testing.assert_allclose(value, wanted[f"{view}_{key}"], rtol=0, atol=1e-5)


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    rgb = noise(7, 5)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    bgra = np.dstack([rgb[..., ::-1], np.full((7, 5), 9, np.uint8)])
    rgba = Image.fromarray(np.dstack([rgb, np.zeros((7, 5), np.uint8)]))
    for source in (
        np.ascontiguousarray(rgb[..., ::-1]),
        rgb[..., ::-1],
        bgra,
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        Image.fromarray(rgb),
        rgba,
    ):
        np.testing.assert_array_equal(load_image(source), rgb)
    grey = rgb[..., 0]
    for flat in (grey, grey[..., None], Image.fromarray(grey)):
        np.testing.assert_array_equal(load_image(flat), np.repeat(grey[..., None], 3, 2))


def test_the_picture_is_a_copy() -> None:
    frame = np.zeros((2, 2, 3), np.uint8)
    picture = load_image(frame)
    frame[:] = 255
    assert not picture.any()


def test_agrees_with_opencv_reading(tmp_path: Path) -> None:
    Image.fromarray(noise(9, 8)).save(tmp_path / "x.png")
    frame = cv2.imread(str(tmp_path / "x.png"))
    assert frame is not None
    np.testing.assert_array_equal(load_image(frame), load_image(tmp_path / "x.png"))


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(4, 9)).save(tmp_path / "x.jpg", exif=exif)
    assert load_image(tmp_path / "x.jpg").shape == (4, 9, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32"),
        (np.zeros((4, 4, 3), np.uint16), "dtype uint16"),
        (np.zeros((4, 4), bool), "dtype bool"),
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 0), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (b"png", "type bytes"),
        (None, "type NoneType"),
        (Image.new("RGB", (0, 4)), "0 x 4 pixels"),
    ],
)
def test_wrong_sources_are_refused(array: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_image(array)  # type: ignore[arg-type]


def test_float_arrays_are_told_what_to_do() -> None:
    with pytest.raises(InputError, match=r"astype\(np\.uint8\)"):
        load_image(np.zeros((4, 4, 3)))


@settings(max_examples=60)
@given(st.data())
def test_damaged_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged.{data.draw(st.sampled_from(['png', 'jpg', 'gif', 'bmp']))}"
    Image.fromarray(noise(12, 10)).save(path)
    raw = bytearray(path.read_bytes())
    del raw[data.draw(st.integers(0, len(raw))) :]
    for _ in range(data.draw(st.integers(0, 3)) if raw else 0):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        picture = load_image(path)
    except InputError:
        return
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(InputError, match="cannot read image"):
            load_image(path)


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (101, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(runtime.image, "MAX_PIXELS", 10_000)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    for source in (tmp_path / "bomb.png", np.zeros((100, 101), np.uint8), Image.new("L", (101, 100))):
        with pytest.raises(InputError, match="101 x 100 pixels"):
            load_image(source)


def normalised(resized: Image.Image, view: ViewSpec) -> np.ndarray:
    """The official arithmetic, spelled out in float32."""
    x = np.asarray(resized).astype(np.float32) / np.float32(255)
    x = (x - np.array(view.mean, np.float32)) / np.array(view.std, np.float32)
    return x.transpose(2, 0, 1)


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["bicubic", "bilinear", "lanczos"]))
def test_stretch_is_bit_equal_to_pillow(height: int, width: int, how: str) -> None:
    view = replace(VIEWS["dino"], height=20, width=31, interpolation=how)
    picture = noise(height, width, height * 71 + width)
    resized = Image.fromarray(picture).resize((31, 20), Image.Resampling[how.upper()])
    assert np.array_equal(prepare(picture, view), normalised(resized, view))


@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70))
def test_crop_keeps_the_centre(height: int, width: int) -> None:
    picture = noise(height, width, height * 71 + width)
    scaled = (24, 24 * height // width) if width <= height else (24 * width // height, 24)
    resized = Image.fromarray(picture).resize(scaled, Image.Resampling.BICUBIC)
    left, top = (scaled[0] - 24) // 2, (scaled[1] - 24) // 2
    cropped = np.asarray(resized)[top : top + 24, left : left + 24]
    assert np.array_equal(prepare(picture, SMALL_CROP), normalised(Image.fromarray(cropped), SMALL_CROP))


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (1, 64_000), (2, 50_000)])
def test_extreme_aspects_stay_small(shape: tuple[int, int]) -> None:
    for view in (VIEWS["clip"], VIEWS["dino"]):
        pixels = prepare(noise(*shape), view)
        assert pixels.shape == (3, view.height, view.width)
        assert np.isfinite(pixels).all()


def test_long_pictures_take_the_same_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((9, 500), (500, 9)):
        picture = noise(*shape) // 2 + 64  # mid tones: no overshoot is clipped between Pillow's two passes
        whole = prepare(picture, SMALL_CROP)
        with monkeypatch.context() as patch:
            patch.setattr(runtime.image, "MAX_PIXELS", 24 * 24)
            cut = prepare(picture, SMALL_CROP)
        # Pillow may take its passes in another order, and rounds to a grey level after each.
        assert np.abs(whole - cut).max() <= 2.01 / 255 / min(CLIP_STD)
        assert np.abs(whole - whole.mean()).max() > 10 * np.abs(whole - cut).max()


def test_views_that_cannot_be_made() -> None:
    with pytest.raises(ConfigError, match="precomputed features"):
        prepare(noise(4, 4), replace(VIEWS["dino"], kind="features"))
    with pytest.raises(ConfigError, match="a square"):
        prepare(noise(4, 4), replace(VIEWS["clip"], width=300))


def test_prepare_views_stacks_pictures() -> None:
    dino, siglip = (replace(VIEWS[name], height=16, width=16) for name in ("dino", "siglip"))
    pictures = [noise(5, 6, 1), noise(30, 20, 2)]
    views = prepare_views(pictures, VisionSpec((dino, siglip), 4, None))
    assert list(views) == ["dino", "siglip"]
    assert views["dino"].shape == (2, 3, 16, 16)
    for i, picture in enumerate(pictures):
        assert np.array_equal(views["siglip"][i], prepare(picture, siglip))


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [
        (64, 64, (1, 1)),
        (10, 10, (1, 1)),
        (65, 65, (1, 1)),  # 2 x 2 fits as well, the first wins
        (128, 64, (2, 1)),
        (100, 64, (1, 1)),  # wastes 1475 of 4096 pixels, two columns 1792 of 8192
        (64, 200, (1, 3)),
        (300, 150, (4, 2)),
        (1, 64, (1, 1)),
    ],
)
def test_region_grids(width: int, height: int, grid: tuple[int, int]) -> None:
    picture = noise(height, width)
    columns, rows = grid
    size = (columns * TILE.size, rows * TILE.size)
    canvas = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
    regions = split_regions(picture, TILE)
    assert len(regions) == columns * rows
    for i, region in enumerate(regions):
        top, left = i // columns * TILE.size, i % columns * TILE.size
        assert np.array_equal(region, canvas[top : top + TILE.size, left : left + TILE.size])


@pytest.mark.parametrize(
    ("width", "height", "waste", "grid"),
    [
        (1280, 720, "fit", (4, 2)),
        (1280, 720, "fit_and_area", (5, 3)),  # empties more of a canvas nearer to the picture's area
        (667, 1442, "fit", (2, 5)),  # a fit counts whole pixels: exact areas would choose (3, 6)
        (265, 898, "fit_and_area", (1, 4)),  # likewise, exactly (1, 3)
    ],
)
def test_what_the_choice_of_a_canvas_minimises(width: int, height: int, waste: str, grid: tuple[int, int]) -> None:
    size = 256
    regions = split_regions(noise(height, width), RegionSpec(size, "bilinear", waste))  # type: ignore[arg-type]
    canvas = Image.fromarray(noise(height, width)).resize((grid[0] * size, grid[1] * size), Image.Resampling.BILINEAR)
    assert len(regions) == grid[0] * grid[1]
    assert np.array_equal(regions[-1], np.asarray(canvas)[-size:, -size:])


def test_views_of_tiles_see_their_cell_alone() -> None:
    """5 rows and 7 columns make cells of 2 x 3: the last row and column are in none."""
    whole = replace(VIEWS["dino"], height=16, width=16)
    cells = {
        (row, column): replace(whole, name=f"{row}{column}", tile=(2, row, column))
        for row in (0, 1)
        for column in (0, 1)
    }
    picture = noise(5, 7)
    views = prepare_views([picture], VisionSpec((whole, *cells.values()), 4, None))
    assert np.array_equal(views["dino"][0], prepare(picture, whole))
    for (row, column), view in cells.items():
        cell = picture[2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
        assert np.array_equal(views[view.name][0], prepare(np.ascontiguousarray(cell), whole))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_pictures_one_pixel_wide_have_tiles(shape: tuple[int, int]) -> None:
    picture = noise(*shape)
    last = prepare(picture, replace(VIEWS["dino"], height=8, width=8, tile=(2, 1, 1)))
    part = picture[-max(1, shape[0] // 2) :, -max(1, shape[1] // 2) :]
    if 9 in shape:  # cells of four pixels, and one left over
        part = picture[4:8] if shape[0] == 9 else picture[:, 4:8]
    assert np.array_equal(last, prepare(np.ascontiguousarray(part), replace(VIEWS["dino"], height=8, width=8)))


def test_frame_hash_sees_every_pixel_and_the_shape() -> None:
    frame = noise(6, 8)
    other = frame.copy()
    other[5, 7, 2] ^= 1
    hashes = {
        frame_hash(frame),
        frame_hash(other),
        frame_hash(frame.reshape(8, 6, 3)),
        frame_hash(frame[:, ::-1]),
    }
    assert len(hashes) == 4
    assert frame_hash(frame) == frame_hash(frame.copy())
    assert len(frame_hash(frame)) == 32
