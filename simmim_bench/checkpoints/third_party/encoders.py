"""Find the encoder in a third-party file: the entry that holds it, and the prefix of its names.

Training code nests and wraps models in many ways: `{"teacher": {"backbone.blocks.0..."}}`, `_orig_mod.module.`,
`model.`. Instead of a list of such names, the places are searched where the first block of a known family is. A
file may hold several encoders, such as a student and its teacher, or weights and their moving average.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from simmim_bench.checkpoints.checkpoint import StateDict
from simmim_bench.checkpoints.fit import shorten
from simmim_bench.checkpoints.load import ENCODER_PREFIX
from simmim_bench.checkpoints.third_party import openmmlab, transformers_names
from simmim_bench.checkpoints.third_party.convnet import IDENTIFYING_WEIGHTS, SEQUENTIAL_RESNET
from simmim_bench.checkpoints.third_party.hints import Hints
from simmim_bench.checkpoints.third_party.importer import READABLE
from simmim_bench.checkpoints.third_party.weights import table_of
from simmim_bench.errors import DataError
from simmim_bench.untrusted.tensors import OPTIMIZER, OddTensor, as_safetensors, odd_tensor

# A weight of the first block of every family, by its name in timm, in OpenMMLab and in transformers.
FIRST_BLOCKS = (
    "blocks.0.attn.qkv.weight",
    "blocks.0.0.attn.qkv.weight",  # DINOv2's chunks of blocks
    "layers.0.blocks.0.attn.qkv.weight",
    *IDENTIFYING_WEIGHTS.values(),
    SEQUENTIAL_RESNET,
    *openmmlab.FIRST_BLOCKS,
    *transformers_names.FIRST_BLOCKS,
)
STEMS = ("patch_embed.", "stem.", "conv1.", "embeddings.patch_embeddings.", "0.weight")
MOST_LISTED = 8  # encoders in a message
NESTING = 3  # levels of dictionaries that are searched
# Parts of an entry or prefix of an encoder that its own project does not evaluate.
# - student: DINO (eval_linear.py, line 264), DINOv2, iBOT and lightly evaluate the teacher.
# - momentum: MoCo v3 (main_lincls.py, line 181), solo-learn (main_linear.py, line 81) and lightly evaluate the other.
# - encoder_k: MoCo.
NOT_EVALUATED = re.compile(r"(^|_)(student|momentum)(_|$)|^encoder_k$")
AVERAGE = re.compile(r"(^|_)ema(_|$)|averag", re.IGNORECASE)
# Entries with the weights of the last step of files whose `state_dict` is the moving average.
# - current_model_state: Lightning's WeightAveraging (callbacks/weight_averaging.py, `on_save_checkpoint`).
# - ema_state_dict: MMEngine's EMAHook exchanges both (hooks/ema_hook.py, `_swap_ema_state_dict`).
LIGHTNING_CURRENT, MMENGINE_CURRENT = "current_model_state", "ema_state_dict"
# Parts of names between a block's number and its weights, or anywhere, that wrappers of modules add.
WRAPPERS = re.compile(
    r"(?<=\d\.)_orig_mod\.|(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


@dataclass(frozen=True)
class Encoder:
    """An encoder of a file.

    Attributes:
        entry: keys of the dictionary that holds it, joined by dots; empty for the file's top level.
        prefix: of its names, empty or with a dot at the end.
    """

    entry: str
    prefix: str

    def __str__(self) -> str:
        places = [f"entry {shorten([self.entry])}"] if self.entry else []
        places += [f"prefix {shorten([self.prefix])}"] if self.prefix else []
        return ", ".join(places) or "names without prefix"

    @property
    def parts(self) -> list[str]:
        """The parts of its entry and prefix."""
        return [part for part in f"{self.entry}.{self.prefix}".split(".") if part]


@dataclass(frozen=True)
class Found:
    """The encoder that is read from a file.

    Attributes:
        encoder: where it is.
        state: its tensors by name without prefix; SimMIM's keep theirs, which distinguishes encoder and decoder.
        unread: names of tensors that do not belong to it.
        rest: the file's other entries by key.
        cut: the removed part of its prefix.
        others: other encoders of the file.
        warning: how to read another encoder; empty if none is as good.
    """

    encoder: Encoder
    state: StateDict
    unread: list[str]
    rest: dict[str, Any]
    cut: str = ""
    others: list[Encoder] = field(default_factory=list)
    warning: str = ""

    def provenance(self) -> dict[str, Any]:
        """Return where the weights were read, if the file holds more than one encoder or has prefixes."""
        if not self.others and not self.cut:
            return {}
        read = {"entry": self.encoder.entry, "prefix": self.encoder.prefix}
        return {"read": {**read, "others": [str(other) for other in self.others]}}


def find_encoder(
    content: Mapping[str, Any], name: str, hints: Hints, identifying: str | None = None
) -> Found:
    """Find the encoder to read from a file's content.

    Args:
        name: of the file, for messages.
        hints: `checkpoint_key` and `strip_prefix` select one of several encoders.
        identifying: name of a weight of the encoder, if its architecture is known; None for the known families.

    Raises:
        DataError: The file holds no weights, no encoder of a known family, or several without a reason for one.
    """
    states = dict(_state_dicts(content))
    if not states:
        raise DataError(
            f"{name} holds no weights by name: neither the file's content nor its entries "
            f"{_listed(content)} are a dictionary of tensors; {as_safetensors('use a file with a state dict')}"
        )
    encoders: list[Encoder] = []
    if identifying is not None:
        encoders = [
            Encoder(entry, key.removesuffix(identifying))
            for entry, state in states.items()
            for key in state
            if key == identifying or key.endswith(f".{identifying}")
        ]
    if not encoders:
        encoders = [
            Encoder(entry, prefix) for entry in states for prefix in _prefixes(states[entry])
        ]
    if not encoders:
        names = [key for state in states.values() for key in state]
        raise DataError(
            f"{name} holds no ViT, Swin, ConvNeXt or ResNet that simmim-bench knows; its first names are "
            f"{shorten(names)}. {READABLE}"
        )
    chosen, others, warning = _choose(encoders, name, hints, _last_step(content))
    state = states[chosen.entry]
    cut = _wrapper(state, chosen.prefix)
    kept = {k.removeprefix(cut): v for k, v in state.items() if k.startswith(cut)}
    odd = [(k, odd_tensor(v)) for k, v in kept.items() if odd_tensor(v)]
    if odd:
        raise DataError(
            f"{name} holds a tensor that is {odd[0][1]}, {shorten([odd[0][0]])}; "
            f"{as_safetensors('save its weights as plain tensors of numbers')}"
        )
    top = chosen.entry.partition(".")[0]
    return Found(
        encoder=chosen,
        state=kept,
        unread=[k for k in state if not k.startswith(cut)],
        rest={
            k: v for k, v in content.items() if k != top and not isinstance(v, Tensor | OddTensor)
        },
        cut=cut,
        others=others,
        warning=warning,
    )


def _state_dicts(
    content: Any, entry: str = "", depth: int = 0, seen: set[int] | None = None
) -> Iterator[tuple[str, StateDict]]:
    """Yield the dictionaries of tensors by name, the outer ones first; one that is in several places, once."""
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or depth > NESTING or id(content) in seen:
        return
    seen.add(id(content))
    # An odd tensor is refused once it is known to be one of the encoder's.
    tensors: Any = {
        WRAPPERS.sub("", str(k)): v for k, v in content.items() if isinstance(v, Tensor | OddTensor)
    }
    if tensors:
        yield entry, tensors
    for key, value in content.items():
        if OPTIMIZER.search(str(key)):
            continue
        yield from _state_dicts(value, f"{entry}.{key}" if entry else str(key), depth + 1, seen)


def _prefixes(state: StateDict) -> list[str]:
    """Return the prefixes of the encoders in a state dict; those with an input layer, if one has."""
    found: list[str] = []
    for key in state:
        ends = (block for block in FIRST_BLOCKS if key == block or key.endswith(f".{block}"))
        # "layers.0.blocks.0..." ends like "blocks.0...", too; the longest match has the shortest prefix.
        prefix = min((key.removesuffix(end) for end in ends), key=len, default=None)
        if prefix is not None and prefix not in found:
            found.append(prefix)
    complete = [p for p in found if any(k.startswith(tuple(p + s for s in STEMS)) for k in state)]
    return complete or found


def _last_step(content: Mapping[str, Any]) -> str:
    """Return the entry with the weights of the last step, if `state_dict` has their moving average; else ""."""
    if LIGHTNING_CURRENT in content and "state_dict" in content:
        return LIGHTNING_CURRENT
    mmengine = "mmengine_version" in table_of(content, "meta")
    return MMENGINE_CURRENT if mmengine and MMENGINE_CURRENT in content else ""


def _choose(
    encoders: list[Encoder], name: str, hints: Hints, last_step: str
) -> tuple[Encoder, list[Encoder], str]:
    """Return the encoder to read, the other ones, and a warning.

    Args:
        last_step: entry with the weights of the last step, of a file whose other entries are moving averages.

    Raises:
        DataError: No encoder is where the hints say, or several remain.
    """
    key, prefix = hints.checkpoint_key, hints.strip_prefix
    dotted = None if prefix is None or not prefix else prefix.removesuffix(".") + "."
    wanted = [
        e
        for e in encoders
        if (key is None or e.entry == key) and (prefix is None or e.prefix == (dotted or ""))
    ]
    if not wanted:
        raise DataError(
            f"{name} holds no encoder with {_command(key, prefix)}; it holds {_commands(encoders)}."
        )
    evaluated = [e for e in wanted if not any(map(NOT_EVALUATED.search, e.parts))]
    if last_step:
        preferred = [e for e in evaluated if e.parts[:1] != [last_step]]
    else:
        preferred = [e for e in evaluated if not any(map(AVERAGE.search, e.parts))]
    left = preferred or evaluated or wanted
    if len(left) > 1:
        raise DataError(
            f"{name} holds {len(left)} encoders; choose one with simmim-bench convert {name} DST and "
            f"{_commands(left)}."
        )
    others = [e for e in encoders if e != left[0]]
    more = [e for e in evaluated if e != left[0]]
    read, unread = "weights", "their moving average. To read the average"
    if last_step:
        read, unread = "a moving average", "the weights of the last step. To read those"
    warning = ""
    if more:
        which = "is" if last_step else "are"
        warning = (
            f"{name} holds {read} ({left[0]}), which {which} read, and {unread}: "
            f"simmim-bench convert {name} DST {_commands(more)}."
        )
    return left[0], others, warning


def _command(key: str | None, prefix: str | None) -> str:
    parts = [f"--checkpoint-key {shorten([key])}"] if key else []
    parts += [f"--strip-prefix {shorten([prefix.removesuffix('.')])}"] if prefix else []
    return " ".join(parts) or "--strip-prefix ''"


def _commands(encoders: list[Encoder]) -> str:
    more = ", ..." if encoders[MOST_LISTED:] else ""
    return ", or ".join(_command(e.entry, e.prefix) for e in encoders[:MOST_LISTED]) + more


def _wrapper(state: StateDict, prefix: str) -> str:
    """Return the part of a prefix to remove.

    SimMIM's `encoder.` is kept, beside which are its mask token and head, the `backbone.` of OpenMMLab's Swin, beside
    which is its neck, and the name of transformers' encoder, beside which are its heads.
    """
    if openmmlab.is_openmmlab_swin(state):
        return prefix.removesuffix("backbone.")
    if prefix + transformers_names.STEM in state:
        above = prefix.removesuffix(f"{prefix.removesuffix('.').rpartition('.')[2]}.")
        return above if any(above + head in state for head in transformers_names.HEADS) else prefix
    outer = prefix.removesuffix(ENCODER_PREFIX)
    if outer != prefix:
        heads = (outer + "decoder.0.", outer + "decoder.weight", prefix + "mask_token")
        if any(key.startswith(heads) for key in state):
            return outer
    return prefix


def _listed(content: Any) -> str:
    keys = [str(key) for key in content][:7] if isinstance(content, Mapping) else []
    return shorten(keys, 6) or "(none)"
