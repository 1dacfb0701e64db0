"""Affinities from pixels: every backend against the definition, storage, gradients, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.ops.problems import relative_error
from torch import Tensor
from torch.nn import functional

import nerve_kernels as nk
from nerve_kernels import reference
from nerve_kernels.colours import rgb_to_lab
from nerve_kernels.grids import stencil_offsets

BACKENDS = [name for name in nk.available_backends() if name in ("cpp", "eager")]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
PAMR_DILATIONS = (1, 2, 4, 8, 12, 24)
SETTINGS: dict[str, dict[str, Any]] = {
    "PAMR": {"kind": "pamr", "dilations": PAMR_DILATIONS},
    "PAMR, a wide window": {"kind": "pamr", "window": (5, 7)},
    "LPOSS+": {"kind": "lab", "window": 5, "tau": 0.05, "normalize": "symmetric"},
    "Lab, not normalised": {"kind": "lab", "window": 3, "tau": 0.2, "dilations": (1, 3)},
    "Lab, rows": {"kind": "lab", "window": (3, 5), "tau": 0.1, "normalize": "row"},
    "Gaussian": {"kind": "gaussian", "window": 5, "sigma": 0.3},
    "Gaussian with distance": {"kind": "gaussian", "window": 5, "sigma": 0.4, "distance_sigma": 1.5},
    "Gaussian, symmetric": {"kind": "gaussian", "window": 3, "sigma": 0.4, "normalize": "symmetric"},
}


def make_image(height: int = 8, width: int = 11, channels: int = 3, batch: int = 2) -> Tensor:
    """Smooth colours, an edge, and a flat corner."""
    generator = torch.Generator().manual_seed(height * width)
    image = torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64) * 0.3
    image[..., width // 2 :] += 0.6
    image[..., :3, :3] = 0.5
    return image


def definition(image: Tensor, settings: dict[str, Any]) -> Tensor:
    options = {name: value for name, value in settings.items() if name not in ("window", "dilations")}
    window, dilations = settings.get("window", 3), settings.get("dilations", (1,))
    pair = window if isinstance(window, tuple) else (window, window)
    options.setdefault("normalize", "none" if options["kind"] == "lab" else "row")
    offsets = stencil_offsets(pair, dilations, False)
    return reference.pixel_affinity(image, offsets=offsets, centres=len(dilations), **options)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_weights_are_those_of_the_definition(name: str, backend: str, dtype: torch.dtype) -> None:
    for image in (make_image(), make_image(5, 150, batch=1)):
        given = image.to(dtype)
        affinity = nk.pixel_affinity(given, backend=backend, **SETTINGS[name])
        assert affinity.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert affinity.values.transpose(1, 2).is_contiguous()
        assert relative_error(affinity.values, definition(given, SETTINGS[name])) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (1, 1)])
def test_narrow_images(shape: tuple[int, int], backend: str) -> None:
    image = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    settings = {"kind": "pamr", "dilations": (1, 30)}
    result = nk.pixel_affinity(image, backend=backend, **settings)  # type: ignore[arg-type]
    assert relative_error(result.values, definition(image, settings)) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_pamr_equals_the_operations_of_its_module(backend: str) -> None:
    """Neighbours by padding and slicing, their standard deviation, softmax, then the masks' neighbours, ten times."""
    image = make_image(30, 41).float()
    masks = torch.rand(2, 5, 30, 41, generator=torch.Generator().manual_seed(1))

    def neighbours(planes: Tensor, centre: bool) -> Tensor:
        found = []
        for reach in PAMR_DILATIONS:
            padded = functional.pad(planes, (reach,) * 4, mode="replicate")
            for dy in (0, reach, 2 * reach):
                for dx in (0, reach, 2 * reach):
                    if centre or (dy, dx) != (reach, reach):
                        found.append(padded[..., dy : dy + 30, dx : dx + 41])
        return torch.stack(found, dim=2)

    spread = neighbours(image, True).std(2, keepdim=True)
    contrast = -(neighbours(image, False) - image[:, :, None]).abs() / (1e-8 + 0.1 * spread)
    weights = contrast.mean(1, keepdim=True).softmax(2)
    expected = masks
    for _ in range(10):
        expected = (neighbours(expected, False) * weights).sum(2)
    affinity = nk.pixel_affinity(image, dilations=PAMR_DILATIONS, backend=backend)
    seeds = masks.flatten(2).transpose(1, 2)
    result = nk.random_walk(seeds, affinity, alpha=1.0, steps=10, normalize=False, backend=backend)
    assert (result.transpose(1, 2).unflatten(2, (30, 41)) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_storage_is_the_rounded_result(backend: str) -> None:
    image = make_image(7, 70).float()
    for settings in SETTINGS.values():
        wide = nk.pixel_affinity(image, backend=backend, **settings).values
        stored = nk.pixel_affinity(image, backend=backend, storage=torch.bfloat16, **settings).values
        assert torch.equal(stored, wide.bfloat16())


def test_a_flat_image_has_equal_weights() -> None:
    affinity = nk.pixel_affinity(torch.full((1, 3, 6, 7), 0.3), dilations=(1, 2))
    assert (affinity.values - 1 / 16).abs().max() < 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pixel_unlike_all_others_keeps_a_row_of_zeros(backend: str) -> None:
    image = torch.zeros(1, 3, 5, 5)
    image[:, :, 2, 2] = 1.0
    for normalize in ("none", "row", "symmetric"):
        weights = nk.pixel_affinity(image, kind="lab", tau=1e-3, normalize=normalize, backend=backend).values[0]
        assert weights[12].eq(0).all()
        assert weights[0].sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_no_number_stays_with_those_that_see_it(name: str, backend: str) -> None:
    image = make_image(9, 80, batch=1)
    expected = nk.pixel_affinity(image, backend=backend, **SETTINGS[name]).values[0]
    spoiled = image.clone()
    spoiled[0, 1, 4, 70] = torch.nan
    weights = nk.pixel_affinity(spoiled, backend=backend, **SETTINGS[name]).values[0]
    assert weights[4 * 80 + 70].isnan().any()
    assert torch.equal(weights[: 9 * 80 : 80], expected[: 9 * 80 : 80])  # the first column sees nothing of it


@pytest.mark.parametrize("name", ["PAMR", "LPOSS+", "Gaussian with distance"])
def test_bitwise_the_same_for_any_number_of_threads(name: str) -> None:
    image = make_image(33, 90).float()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(nk.pixel_affinity(image, **SETTINGS[name]).values)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_strides_do_not_matter() -> None:
    image = make_image().float()
    expected = nk.pixel_affinity(image).values
    last = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(nk.pixel_affinity(last).values, expected)
    assert torch.equal(nk.pixel_affinity(image.repeat_interleave(2, 3)[..., ::2]).values, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_are_those_of_differences(name: str) -> None:
    image = make_image(4, 5, batch=1)
    # away from a distance of 0, where there is none
    image = (image + 0.1 * torch.rand(image.shape, generator=torch.Generator().manual_seed(3))).requires_grad_()
    settings = {**SETTINGS[name], "dilations": (1,)}
    window = settings.get("window", 3)
    settings["window"] = window if settings["kind"] == "pamr" else 3

    def call(given: Tensor) -> Tensor:
        return nk.pixel_affinity(given, **settings).values

    assert torch.autograd.gradcheck(call, (image,), atol=1e-5)


def test_gradients_of_a_flat_image_are_zero() -> None:
    for name in ("PAMR", "Gaussian", "Gaussian, symmetric"):  # a distance has a kink there
        settings = SETTINGS[name]
        image = torch.full((1, 3, 6, 6), 0.4, requires_grad=True)
        weights = nk.pixel_affinity(image, **{**settings, "dilations": (1,)}).values
        (gradient,) = torch.autograd.grad(weights.square().sum(), image)
        assert gradient.abs().max() < 1e-5


def test_the_operator_passes_the_checks_of_torch() -> None:
    image = make_image().float().requires_grad_()
    arguments = (image, [3, 3], [1, 2], "contrast", 1.0, 0.0, "row", False)
    torch.library.opcheck(torch.ops.nerve_kernels.pixel_affinity.default, arguments)


def test_lab_is_that_of_scikit_image() -> None:
    color = pytest.importorskip("skimage.color")
    image = torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[..., 0] *= 0.05  # the straight part of both curves
    expected = torch.from_numpy(color.rgb2lab(image[0].permute(1, 2, 0).numpy())).permute(2, 0, 1)
    assert (rgb_to_lab(image)[0] - expected).abs().max() < 1e-3
    assert (rgb_to_lab(image) - reference.rgb_to_lab(image)).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("rgb", "lab"),
    # CIELAB of the primaries of sRGB under D65, as published
    [((1, 0, 0), (53.24, 80.09, 67.20)), ((0, 1, 0), (87.73, -86.18, 83.18)), ((0, 0, 1), (32.30, 79.19, -107.86))],
)
def test_lab_of_the_primaries(rgb: tuple[int, ...], lab: tuple[float, ...]) -> None:
    found = rgb_to_lab(torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)).flatten()
    assert (found - torch.tensor(lab)).abs().max() < 0.02


IMAGE = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
BAD: list[tuple[type[Exception], dict[str, Any], str]] = [
    (TypeError, {"image": [1]}, r"image: expected a torch.Tensor \(B, channels, H, W\), got list"),
    (ValueError, {"image": IMAGE[0]}, r"image: expected shape \(B, channels, H, W\), got \(3, 6, 7\)"),
    (ValueError, {"image": IMAGE[:, :2], "kind": "lab"}, "image: expected 3 channels, sRGB, with kind='lab'"),
    (ValueError, {"image": IMAGE[..., :0]}, "image: expected at least one channel and one pixel"),
    (ValueError, {"image": IMAGE * torch.nan, "check": True}, "image: expected finite numbers, got 126 that are not"),
    (ValueError, {"image": IMAGE * 255, "kind": "lab", "check": True}, r"image: expected sRGB in \[0, 1\] with kind"),
    (ValueError, {"kind": "rgb"}, "kind: expected 'pamr', 'lab' or 'gaussian', got 'rgb'"),
    (ValueError, {"window": 1}, "window: expected more than one pixel, got 1"),
    (ValueError, {"window": 4}, "window: expected odd sizes"),
    (ValueError, {"kind": "lab", "window": 13}, "window: expected at most 2 · side − 1 = 11"),
    (ValueError, {"kind": "lab", "dilations": (9,)}, r"dilations\[0\]: expected at most 5"),
    (ValueError, {"tau": 0.1}, "tau: expected None with kind='pamr', got 0.1; it belongs to kind='lab'"),
    (ValueError, {"kind": "lab", "tau": 0}, "tau: expected a number > 0, got 0"),
    (ValueError, {"kind": "lab", "sigma": 0.1}, "sigma: expected None with kind='lab', got 0.1"),
    (ValueError, {"distance_sigma": 2}, "distance_sigma: expected None with kind='pamr', got 2"),
    (ValueError, {"normalize": "none"}, "normalize: expected None or 'row' with kind='pamr', got 'none'"),
    (ValueError, {"normalize": "rows"}, "normalize: expected 'none', 'row' or 'symmetric', got 'rows'"),
    (ValueError, {"storage": torch.float16}, "storage: expected None, torch.float32 or torch.bfloat16"),
    (TypeError, {"check": 1}, "check: expected True or False, got int"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), BAD)
def test_bad_arguments_are_refused(kind: type[Exception], arguments: dict[str, Any], message: str) -> None:
    options = {"image": IMAGE, **arguments}
    with pytest.raises(kind, match=message):
        nk.pixel_affinity(options.pop("image"), **options)
