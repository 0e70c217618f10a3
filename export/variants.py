"""Every variant of VisualRWKV this SDK knows: what their checkpoints do not say, as data.

A new variant is one entry here, its modules in `export/arch` or `export/towers`, and a golden. The README's table of
supported models is made from this list (`python -m export.variants`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runtime.spec import ImagePosition, Padding, RegionSpec, ScanOrder, TextOnly

SCANS: dict[str, tuple[ScanOrder, ...]] = {
    "unidirectional": ("natural",) * 4,
    "bidirectional": ("natural", "reversed") * 2,
    "multidirectional": ("natural", "reversed", "transposed", "transposed_reversed"),
}


Tower = Literal["fused", "pair", "siglip", "clip"]


@dataclass(frozen=True)
class Variant:
    """One model design. The defaults are those of most of them."""

    version: str
    title: str
    family: Literal["rwkv6", "rwkv7"]
    tower: Tower
    verified: str
    scan: str = ""  # a key of SCANS; "": layers read images as they read text
    fixed: int = 0  # tokens at the end of an image that keep their place in a scan
    image_position: ImagePosition = "first"
    text_only: TextOnly = "plain"
    padding: Padding = "none"
    tokens: int | None = None  # image tokens after pooling; None: one for every cell
    regions: RegionSpec | None = None
    compressed_per: Literal["", "picture", "region"] = ""
    state_encoder: bool = False
    image_token: bool = True  # the last row of the embedding table stands for images in the official code


_GOLDEN = "official outputs (tests/golden)"
_REFERENCE = "independent NumPy reference of its parts"
_UNIT = "unit tests of its parts"


def _v6(version: str, title: str, tower: Tower, scan: str, fixed: int, verified: str = _REFERENCE) -> Variant:
    """Return a model that scans its one picture, which stands in the middle of the prompt."""
    return Variant(
        version,
        f"VisualRWKV-6 {title}",
        "rwkv6",
        tower,
        verified,
        scan=scan,
        fixed=fixed,
        image_position="middle",
        text_only="zero_block",
        image_token=False,
    )


def _hm(version: str, verified: str) -> Variant:
    """Return a hybrid-mixing model."""
    title = f"VisualRWKV-HM v{version}"
    return Variant(version, title, "rwkv6", "fused", verified, text_only="black_picture", tokens=64, state_encoder=True)


def _v7(version: str, tower: Tower, verified: str, **options: Any) -> Variant:
    return Variant(version, f"VisualRWKV-7 v{version}", "rwkv7", tower, verified, padding="left16", **options)


_REGIONS = RegionSpec(256, "lanczos")
_TIGHTER_REGIONS = RegionSpec(256, "lanczos", "fit_and_area")

VARIANTS: dict[str, Variant] = {
    variant.version: variant
    for variant in (
        _v6("6.00", "v6.0", "clip", "bidirectional", 1, _GOLDEN),
        _v6("6.01", "v6.01", "clip", "multidirectional", 1),
        _v6("6.10", "v6.10", "siglip", "unidirectional", 1),
        _v6("6.11", "v6.11", "pair", "bidirectional", 1),
        _v6("6.12", "HD", "fused", "bidirectional", 0),
        _v6("6.13", "UHD", "fused", "bidirectional", 0),
        Variant("6.20", "VisualRWKV-6 v6.20", "rwkv6", "fused", _UNIT, tokens=16),
        _hm("6.21", _GOLDEN),
        _hm("6.22", _REFERENCE),
        _v7("7.00", "fused", _GOLDEN),
        _v7("7.01", "siglip", _UNIT),
        _v7("7.02", "siglip", _UNIT, regions=_REGIONS),
        _v7("7.03", "siglip", _REFERENCE, tokens=1024, compressed_per="picture", regions=_TIGHTER_REGIONS),
        _v7("7.04", "siglip", _REFERENCE, tokens=256, compressed_per="region", regions=_TIGHTER_REGIONS),
    )
}

_TOWERS = {
    "clip": "CLIP ViT-L/14-336",
    "siglip": "SigLIP or SigLIP2",
    "pair": "DINOv2 + SigLIP",
    "fused": "DINOv2 + SigLIP + SAM",
}
_NAMES = {"hd": "6.12", "uhd": "6.13", "hm": "6.21", "v6.0": "6.00"}


def version_of(name: str) -> str | None:
    """Return the version that "v7.00", "v6.0", "v6.21 (HM)", "HD" or "text" stands for, or None."""
    word = name.lower().split(" ")[0]
    version = _NAMES.get(word, word.removeprefix("v"))
    return version if version in VARIANTS or version == "text" else None


def table() -> str:
    """Return the table of supported models in Markdown."""
    rows = ["| model | language model | tower | pictures | verified against |", "|---|---|---|---|---|"]
    for v in VARIANTS.values():
        read = f"{v.scan} scan" if v.scan else "read as text"
        extra = ", image state" if v.state_encoder else ", compressed" if v.compressed_per else ""
        extra += ", cut into regions" if v.regions else ""
        name = _TOWERS[v.tower] + (", whole picture and 2 x 2 tiles" if v.version == "6.13" else "")
        rows.append(
            f"| {v.title} | {v.family.upper().replace('RWKV', 'RWKV-')} | {name} "
            f"| {v.image_position}, {read}{extra} | {v.verified} |"
        )
    rows += [f"| {name} World text models | {name} | | | {_GOLDEN} |" for name in ("RWKV-6", "RWKV-7")]
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
