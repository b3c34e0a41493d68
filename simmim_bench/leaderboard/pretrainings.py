"""Find the checkpoints that one method gave with several pretraining seeds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from simmim_bench.files import sha256_json
from simmim_bench.results.record import Record

MAX_SEED = 2**64 - 1  # torch's generators take no larger seed


def method_key(record: Record) -> Hashable | None:
    """Return what the checkpoints of one method share: everything about their pretraining but the seed.

    That is the hash of the recipe, which covers its deviations and the design, and the architecture, the images, the
    epochs, the initial weights and the weights of a teacher. What the seed changes, such as losses, and what changes
    no result, such as the number of devices or the label, is left out. The version of the code is left out as well:
    checkpoints do not have it.

    Random weights that were trained with labels are pretrained as well.

    Returns:
        None for random weights, and for a checkpoint whose provenance lacks an entry: another trainer's, a damaged
        one, or one that was fine-tuned after a pretraining.
    """
    provenance = record.checkpoint["provenance"]
    known = {
        "method": provenance.get("method"),
        "recipe": _entry(provenance, "recipe", "sha256"),
        "data": _entry(provenance, "data", "fingerprint"),
        "epochs": provenance.get("epochs"),
    }
    if provenance.get("target_model") is not None:
        known["teacher"] = _entry(provenance, "target_model", "sha256")
    if None in known.values() or pretraining_seed(record) is None or _was_fine_tuned(provenance):
        return None
    return sha256_json(
        {
            **known,
            "arch": record.checkpoint["arch"],
            "init_from": provenance.get("init_from"),
            # A conversion to other channels or another size is another model.
            "adapted": provenance.get("adapted"),
            "converted": "converted_from" in provenance,
            "params": record.checkpoint.get("params"),
        }
    )


def pretraining_seed(record: Record) -> int | None:
    """Return the seed of the pretraining; None for a checkpoint whose provenance lacks it.

    Checkpoints of one method and one seed are one pretraining, even where the rounding of a GPU makes them differ.
    """
    seed = record.checkpoint["provenance"].get("seed")
    return seed if type(seed) is int and 0 <= seed <= MAX_SEED else None


def _was_fine_tuned(provenance: Mapping[str, Any]) -> bool:
    """Return whether the weights were pretrained before the training that the provenance describes."""
    if "fine_tuned" in provenance:
        return True
    source = provenance.get("from")
    before = source.get("provenance") if isinstance(source, Mapping) else None
    random = isinstance(before, Mapping) and before.get("method") == "random"
    return "from" in provenance and not random


def _entry(provenance: Mapping[str, Any], part: str, name: str) -> str | None:
    """Return a text in a part of a provenance; None where there is none."""
    found = provenance.get(part)
    text = found.get(name) if isinstance(found, Mapping) else None
    return text if isinstance(text, str) else None
