"""Golden values: reads them, and makes the reduced files here from whole ones.

  python tests/golden/golden_files.py WHOLE_FOLDER

`reference_b.npz` is a small UNet with random weights and what the published RealCustom++ inference (PyTorch,
float32) made of it: passes, word maps, masks, the projector's tokens, whole sampling loops. `vision_a.npz` is
the same of small image towers. Inputs and outputs are as they were; weights are rounded to 13 bits of
mantissa, which changes outputs by less than 1e-4, and stored byte by byte, which compresses better.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FILES = ("reference_b.npz", "vision_a.npz")
# The whole files, where available; they include a second UNet, `reference_a.npz`.
WHOLE = HERE.parents[2] / "shared" / "golden"
_WEIGHTS = ("w/", "siglip/", "dinov2/")
_MANTISSA = 13  # of 23 bits
_PLANES, _INDEX = "weight_bytes", "weight_index"


def main() -> None:
    for name in FILES:
        whole = np.load(Path(sys.argv[1]) / name)
        weights = {key: whole[key] for key in whole.files if key.startswith(_WEIGHTS)}
        rest = {key: whole[key] for key in whole.files if key not in weights}
        index = json.dumps({key: value.shape for key, value in weights.items()})
        numbers = np.concatenate([_rounded(value).reshape(-1) for value in weights.values()])
        planes = np.ascontiguousarray(numbers.view(np.uint8).reshape(-1, 4).T)
        np.savez_compressed(HERE / name, **rest, **{_PLANES: planes, _INDEX: index})


def _rounded(values: np.ndarray) -> np.ndarray:
    bits, dropped = np.ascontiguousarray(values, np.float32).view(np.uint32), 23 - _MANTISSA
    return ((bits + (1 << (dropped - 1))) >> dropped << dropped).astype(np.uint32).view(np.float32)


def read(path: Path) -> Mapping[str, np.ndarray]:
    """A golden file as {key: array}, whole or reduced."""
    file = np.load(path)
    values = {key: file[key] for key in file.files if key not in (_PLANES, _INDEX)}
    if _INDEX not in file.files:
        return values
    numbers, start = np.ascontiguousarray(file[_PLANES].T).view(np.float32).reshape(-1), 0
    for key, shape in json.loads(str(file[_INDEX])).items():
        end = start + int(np.prod(shape))
        values[key], start = numbers[start:end].reshape(shape), end
    return values


if __name__ == "__main__":
    main()
