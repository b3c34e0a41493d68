"""Find the checkpoints that one method gave with several pretraining seeds."""

from __future__ import annotations

from collections.abc import Hashable

from simmim_bench.results.record import Record


def method_key(record: Record) -> Hashable | None:
    """Return what the checkpoints of one method share: everything about their pretraining but the seed.

    Returns:
        None if the record does not say how its checkpoint was pretrained, or of random weights, whose seeds are those
        of the records.
    """
    provenance = record.checkpoint["provenance"]
    recipe, data = provenance.get("recipe"), provenance.get("data")
    if not isinstance(recipe, dict) or not isinstance(data, dict) or "seed" not in provenance:
        return None
    return (
        record.checkpoint["arch"],
        recipe.get("sha256"),
        repr(recipe.get("deviates")),
        data.get("fingerprint"),
        provenance.get("init_from"),
    )
