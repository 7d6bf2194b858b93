"""Turns a finished run into a released weight: float16 in s2fpn_lib/weights/, the run's records in results/.

    python scripts/release_weights.py <run folder> s2fpn_lite-camvid --records results/camvid-lite --as final

Prints size and checksum for the model card. The weights of a run directory are never changed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

from s2fpn_lib.checkpoint import RELEASED, find_weights, load_model, read_metadata, save_weights

RECORDS = ("config.json", "metrics.jsonl", "result.json")
LARGEST_MB = 10  # of a weight that is kept in the repository


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="what load_model will know the weight as")
    parser.add_argument("--records", type=Path, required=True, help="folder for the run's small files")
    parser.add_argument("--as", dest="prefix", required=True, help="first part of their names")
    given = parser.parse_args()

    metadata = read_metadata(find_weights(given.run))
    metadata.pop("config")  # save_weights writes the model's own
    target = RELEASED / f"{given.name}.safetensors"
    save_weights(load_model(given.run), target, metadata, half=True)
    data = target.read_bytes()
    if len(data) > LARGEST_MB * 1e6:
        target.unlink()
        raise SystemExit(f"{target} would have {len(data) / 1e6:.1f} MB; a released weight has at most {LARGEST_MB}")
    given.records.mkdir(parents=True, exist_ok=True)
    for record in RECORDS:
        shutil.copyfile(given.run / record, given.records / f"{given.prefix}-{record}")
    print(f"{target}: {len(data) / 1e6:.1f} MB, SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
