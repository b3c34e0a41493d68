"""Write a model card: metadata with a `model-index`, and a text with scores, training and use.

The metadata follow the Hub's specification of model cards (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim_bench import __version__
from simmim_bench.checkpoints.checkpoint import Checkpoint
from simmim_bench.data.named import HUB_PREFIX
from simmim_bench.leaderboard.group_names import data_name
from simmim_bench.leaderboard.protocols import describe_recipe
from simmim_bench.leaderboard.text_tables import escape_markdown, plain_table
from simmim_bench.publish.scores import MARKS, CardScore
from simmim_bench.results.record import Record, count_params
from simmim_bench.tasks import predictions_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

# The Hub's names of tasks by kind of predictions (https://huggingface.co/tasks), and of metrics.
TASK_TYPES = {"coco": "object-detection", "confusion": "image-segmentation"}
METRIC_TYPES = {"top1": "accuracy", "miou": "mean_iou"}
TAG = "simmim-bench"  # of every repository that `push` writes
METHODS = {"simmim": "pretrained with SimMIM (arXiv 2111.09886)", "finetune": "trained with labels"}


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says, besides what the checkpoint has.

    Attributes:
        repository: ORG/NAME.
        classes: outputs of the classification head; 0 without one.
        scores: from records.
        licence: the Hub's identifier of the licence, such as `apache-2.0`; None where it is not known.
        datasets: the Hub's names of the training data.
        without_timm: why timm cannot load the repository; empty where it can.
        timm_note: how timm's features differ; empty where they do not.
    """

    repository: str
    classes: int = 0
    scores: Sequence[CardScore] = ()
    licence: str | None = None
    datasets: tuple[str, ...] = ()
    without_timm: str = ""
    timm_note: str = ""


def write_card(checkpoint: Checkpoint, facts: CardFacts) -> ModelCard:
    """Return the model card of a checkpoint."""
    from huggingface_hub import ModelCard, ModelCardData

    method = str(checkpoint.provenance.get("method", ""))
    results = [_eval_result(one) for one in facts.scores if one.is_sound]
    metadata = ModelCardData(
        license=facts.licence,
        library_name="simmim-bench" if facts.without_timm else "timm",
        pipeline_tag="image-classification" if facts.classes else "image-feature-extraction",
        tags=[TAG, *_tags(method)],
        datasets=_data_sets(checkpoint, facts.datasets) or None,
        model_name=facts.repository.partition("/")[2],
        eval_results=results or None,
    )
    if not results:
        del metadata.model_name
    parts = [
        _introduction(checkpoint, method),
        _use(checkpoint, facts),
        _scores(facts.scores),
        _training(checkpoint),
        _files(facts),
    ]
    return ModelCard(f"---\n{metadata}\n---\n\n" + "\n\n".join(parts) + "\n")


def _tags(method: str) -> list[str]:
    if method != "simmim":
        return []
    return ["simmim", "masked-image-modeling", "self-supervised-learning"]


def _data_sets(checkpoint: Checkpoint, given: Iterable[str]) -> list[str]:
    """Return the Hub's names of the training data: those given, and that of `hfds:NAME`."""
    root = _entry(checkpoint.provenance, "data").get("root")
    named = _hub_name(root) if isinstance(root, str) else None
    return list(dict.fromkeys([*given, *([named] if named else [])]))


def _hub_name(root: str) -> str | None:
    """Return NAME of a data set `hfds:NAME...`; None for a folder."""
    found = re.match(r"[\w.-]+(/[\w.-]+)?", root.removeprefix(HUB_PREFIX))
    return found[0] if root.startswith(HUB_PREFIX) and found else None


def _eval_result(one: CardScore) -> EvalResult:
    """Return an entry of the `model-index`."""
    from huggingface_hub import EvalResult

    record, metric = one.runs.first, one.score.metric
    name = data_name(record)
    arguments = {
        "recipe": record.recipe["name"],
        "recipe_sha256": record.recipe["sha256"],
        "deviates": record.deviates,
        "seeds": one.seeds,
        "std_over_seeds": _plain(one.score.seeds),
        "standard_error_of_images": _plain(one.score.images),
        "images": record.expected,
    }
    return EvalResult(
        task_type=TASK_TYPES.get(predictions_of(record.task), "image-classification"),
        dataset_type=_hub_name(record.data["root"]) or re.sub(r"[^\w.-]+", "-", name.lower()),
        dataset_name=name,
        metric_type=METRIC_TYPES.get(metric, metric),
        metric_name=f"{one.title} (%)",
        metric_value=_plain(one.score.mean),
        metric_args={key: value for key, value in arguments.items() if value not in (None, {})},
    )


def _plain(value: float | None) -> float | None:
    """Return a number with the digits of a table, and no number of numpy's, which YAML does not know."""
    return None if value is None else round(float(value), 2)


def _introduction(checkpoint: Checkpoint, method: str) -> str:
    spec, provenance = checkpoint.spec, checkpoint.provenance
    height, width = spec.img_size
    how = METHODS.get(method, f"of the method {method}" if method else "of an unknown method")
    data = _entry(provenance, "data")
    name = Path(str(data.get("root", ""))).name
    on = f" on {name}" if name else ""
    sentence = (
        f"A {spec.arch} of {count_params(spec) / 1e6:,.1f} M parameters for images of {height}x{width} pixels, "
        f"{how}{on}."
    )
    written = f"Written by simmim-bench {__version__}."
    return f"# {escape_markdown(checkpoint.label)}\n\n{escape_markdown(sentence)} {written}"


def _use(checkpoint: Checkpoint, facts: CardFacts) -> str:
    """Return the commands that load the repository."""
    name = facts.repository
    mean, std = (
        [round(value, 4) for value in values] for values in (checkpoint.mean, checkpoint.std)
    )
    unit = "pixels in [0, 1]" if checkpoint.value_range == "uint8" else "the values as stored"
    lines = [
        "## Use",
        f"Input: {unit}, normalised with mean {mean} and standard deviation {std}.",
        f"```bash\nsimmim-bench transfer linear --ckpt hub:{name} --data DIR\n```",
        "```python\nimport simmim_bench as sb\n\n"
        f'backbone = sb.load_backbone("hub:{name}")\n'
        "maps = backbone.forward_maps(images)  # feature maps; forward_features(images) pools them\n```",
    ]
    if facts.without_timm:
        return "\n\n".join([*lines, f"timm cannot load it: {escape_markdown(facts.without_timm)}"])
    lines.append(
        f'```python\nimport timm\n\nmodel = timm.create_model("hf-hub:{name}", pretrained=True)\n```'
    )
    if facts.timm_note:
        lines.append(f"In timm, {escape_markdown(facts.timm_note)}.")
    return "\n\n".join(lines)


def _scores(scores: Sequence[CardScore]) -> str:
    if not scores:
        return "## Scores\n\nNo records were published with this checkpoint."
    rows = [["score", "percent", "data", "images", "protocol", "deviations", "seeds"]]
    for one in scores:
        record = one.runs.first
        mean, *margins = (f"{name} {text}".strip() for name, text in one.score.parts().items())
        rows.append(
            [
                one.title,
                "<br>".join([mean + "".join(one.marks).replace("*", r"\*"), *margins]),
                data_name(record),
                f"{record.evaluated:,}",
                _protocol(record),
                ", ".join(f"{key}={value}" for key, value in record.deviates.items()) or "none",
                ", ".join(map(str, one.seeds)),
            ]
        )
    marks = dict.fromkeys(mark for one in scores for mark in one.marks)
    notes = [f"{escape_markdown(mark)} {MARKS[mark]}." for mark in marks]
    explained = [
        "Scores are computed from stored predictions. A protocol is a named recipe: `simmim-bench recipes show NAME`.",
        "seeds ±: standard deviation over seeds of the transfer. images ±: standard error from the number of images.",
        *notes,
    ]
    return "## Scores\n\n" + _table(rows, raw=(1,)) + "\n\n" + "\n\n".join(explained)


def _protocol(record: Record) -> str:
    """Return the recipe of a record; its deviations have a column."""
    return describe_recipe(record) if "classifier" in record.data else str(record.recipe["name"])


def _training(checkpoint: Checkpoint) -> str:
    """Return what the checkpoint's provenance says of its training."""
    known = checkpoint.provenance
    recipe, data, source = (_entry(known, name) for name in ("recipe", "data", "from"))
    before = _entry(source, "provenance").get("label")
    images = data.get("images")
    seconds, devices = known.get("wall_time_s"), known.get("devices")
    epochs, loss = known.get("epochs"), known.get("held_out_loss")
    hours = None
    if isinstance(seconds, int | float) and isinstance(devices, int):
        hours = f"{seconds * devices / 3600:.3g}"
    facts = {
        "method": known.get("method"),
        "recipe": recipe.get("name"),
        "deviations": ", ".join(f"{k}={v}" for k, v in _entry(recipe, "deviates").items()),
        "data": Path(str(data.get("root", ""))).name,
        "images": f"{images:,}" if isinstance(images, int) else None,
        "epochs": f"{epochs:g}" if isinstance(epochs, int | float) else None,
        "seed": known.get("seed"),
        "initial weights": before,
        "held-out loss": f"{loss:.4f}" if isinstance(loss, int | float) else None,
        "device-hours": hours,
        "SHA-256 of the weights": checkpoint.sha256,
    }
    rows = [["", ""], *([k, str(v)] for k, v in facts.items() if v not in (None, ""))]
    return "## Training\n\n" + _table(rows)


def _files(facts: CardFacts) -> str:
    rows = [["file", "content"], ["simmim-bench/", "checkpoint directory of simmim-bench, --ckpt"]]
    if not facts.without_timm:
        rows.append(["config.json, model.safetensors", "the backbone for timm"])
    return "## Files\n\n" + _table(rows)


def _table(rows: Sequence[Sequence[str]], raw: Iterable[int] = ()) -> str:
    """Return a Markdown table, the first row as heading; columns in `raw` are Markdown already."""
    lines = [
        [cell if i in raw else escape_markdown(cell) for i, cell in enumerate(row)] for row in rows
    ]
    return plain_table(lines[0], lines[1:])


def _entry(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table in a provenance; empty where there is none."""
    found = provenance.get(name)
    return found if isinstance(found, Mapping) else {}
