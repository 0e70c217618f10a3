"""Vision files of their own: every public naming, and position tables of other grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.checkpoint import Checkpoint
from export.infer import infer
from export.weights import WeightSource, load_weight
from runtime.errors import CheckpointError
from tests.export.namings import NAMINGS, parts
from tests.export.torch_models import DINO, SAM, SIGLIP, config_of, open_model, read, vision_model, write


@pytest.mark.parametrize("naming", NAMINGS)
def test_separate_vision_files_in_public_namings(golden: Path, tmp_path: Path, naming: str) -> None:
    tensors = read(golden / "v700.pth")
    main = write({key: x for key, x in tensors.items() if not key.startswith("vit.")}, tmp_path / "main.pth")
    config = config_of(golden, "v700.pth", n_keys=None)
    files = [
        write(rename(parts(tensors, prefix)), tmp_path / f"{index}.pth")
        for index, (prefix, rename) in enumerate(zip((DINO, SIGLIP, SAM), NAMINGS[naming], strict=True))
    ]
    with pytest.raises(CheckpointError, match="no vision tower"):
        infer(Checkpoint.open(main), config)
    with pytest.raises(CheckpointError, match="lacks sam_featurizer"):
        infer(Checkpoint.open(main, files[:2]), config)
    checkpoint = Checkpoint.open(main, files)
    renamed = vision_model(checkpoint, infer(checkpoint, config))
    original = vision_model(*open_model(golden / "v700.pth", config_of(golden, "v700.pth")))
    for (name, ours), (other, theirs) in zip(original.named_parameters(), renamed.named_parameters(), strict=True):
        assert name == other
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-6), name


def test_unknown_vision_file(golden: Path, tmp_path: Path) -> None:
    path = write({"layer1.0.conv1.weight": torch.ones(2, 2)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="no vision tower known here"):
        Checkpoint.open(golden / "rwkv7_text.pth", [path])


@pytest.mark.parametrize(("side", "class_row"), [(37, True), (27, False), (32, False), (32, True)])
def test_position_tables_are_resampled_like_pillow(tmp_path: Path, side: int, class_row: bool) -> None:
    """Pillow's bicubic is the same antialiased filter, from another hand."""
    table = torch.randn(side * side, 3, generator=torch.Generator().manual_seed(2))
    rows = torch.cat([torch.full((1, 3), 9.0), table]) if class_row else table
    checkpoint = Checkpoint.open(write({"p": rows[None]}, tmp_path / "p.pth"))
    found = load_weight(checkpoint, WeightSource(("p",), "positions", (1024, 3)))
    for channel in range(3):
        image = Image.fromarray(table[:, channel].reshape(side, side).numpy())
        wanted = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC))
        assert np.abs(found[:, channel].reshape(32, 32).numpy() - wanted).max() <= 1e-5


def test_public_grids_fit_the_fused_tower(golden: Path, tmp_path: Path) -> None:
    """DINOv2 of 37 x 37 and SigLIP of 27 x 27 positions come out at SAM's half grid, 32 x 32."""
    tensors = {key: x.float() for key, x in read(golden / "v700.pth").items()}
    tensors[f"{DINO}pos_embed"] = torch.ones(1, 37 * 37, 48)
    tensors[f"{SIGLIP}pos_embed"] = torch.ones(1, 27 * 27, 32)
    config = config_of(golden, "v700.pth", stored_dtype="float32")
    checkpoint, spec = open_model(write(tensors, tmp_path / "m.pth"), config)
    model = vision_model(checkpoint, spec)
    assert torch.allclose(model.tower.dino.positions, torch.ones(1024, 48))
    assert torch.allclose(model.tower.siglip.positions, torch.ones(1024, 32))
