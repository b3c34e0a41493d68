"""Check visual tokens: fitted, given and user-defined tokenizers, and the prediction of their tokens."""

from __future__ import annotations

import math
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.commands import two_processes
from support.pretraining import (
    half_masks,
    pixel_mask,
    pretrain_first_epoch,
    pretrain_pocket,
    save_checkpoint,
    smooth_images,
)
from support.tiny import TINY

from pretrain.design import Design, target_stride
from pretrain.recipes import POCKET
from pretrain.simmim import SimMIM, load_simmim
from pretrain.targets.models import load_target_model
from pretrain.targets.tokenizer import DECAY, EMACodebook, Tokenizer, fit_tokenizer
from pretrain.targets.tokens import TokenTarget, UserTokenTarget
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.loader import seed_everything
from simmim_bench.display import Display
from simmim_bench.errors import DataError, UsageError
from simmim_bench.models.archs import find_spec
from simmim_bench.overrides import override

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
TOKENS = Design(target="tokens", tokens=8)
QUIET = Display(quiet=True)
# User-defined tokenizers: mean brightness of squares of 4 pixels, quantised to four levels, and variants.
BRIGHTNESS = """
import random

import numpy as np
import torch

class Brightness(torch.nn.Module):
    vocabulary, stride = 4, 4

    def forward(self, images):
        grey = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), self.stride)[:, 0]
        return (grey * 4).long().clamp(0, 3)

class Darkness(Brightness):
    def forward(self, images):
        return 3 - super().forward(images)

class Chance(torch.nn.Module):
    vocabulary, stride = 4, 4

    def __init__(self):
        super().__init__()
        self.score = torch.nn.Conv2d(3, 4, 4, 4)
        self.score.bias.data += torch.tensor([np.random.rand(), random.random(), 0, 0])

    def forward(self, images):
        return self.score(images).argmax(1)

class Drawing(Brightness):
    def decode(self, ids):
        grey = ((ids.float() + 0.5) / 4).repeat_interleave(4, 1).repeat_interleave(4, 2)
        return grey.unsqueeze(1).expand(-1, 3, -1, -1)

class Coarse(Brightness):
    stride = 3

class Beyond(Brightness):
    vocabulary = 2

class Wide(Brightness):
    def forward(self, images):
        return super().forward(images)[:, ::2]

class Real(Brightness):
    def forward(self, images):
        return super().forward(images).float()

class Wordless(Brightness):
    vocabulary = None

def broken():
    raise OSError("no such weights")

def number():
    return 4
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an importable module with user-defined tokenizers."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "own_tokens.py").write_text(BRIGHTNESS)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield "own_tokens"
    sys.modules.pop("own_tokens", None)


def levels(count: int, seed: int = 0) -> torch.Tensor:
    return ((smooth_images(TINY["vit"], count, seed) * STD + MEAN).clamp(0, 1) * 255).round().byte()


@cache
def fitted_target() -> TokenTarget:
    target = TokenTarget(TOKENS, TINY["vit"])
    target.fit(smooth_images(TINY["vit"], 8, seed=9).split(1), seed=0)
    return target


@cache
def fitted_net(seed: int) -> tuple[Tokenizer, dict[str, float]]:
    return fit_tokenizer(levels(10), vocabulary=16, stride=4, seed=seed, display=QUIET)


@pytest.mark.heavy
def test_token_is_the_nearest_code_of_a_naive_loop() -> None:
    target = fitted_target()
    images = smooth_images(TINY["vit"])
    ids = target.from_images(images)
    assert ids.shape == (2, 1, 8, 8)
    codes = target.tokenizer.encode(images * STD + MEAN).double().numpy()
    book = target.tokenizer.codebook.double().numpy()
    for b in range(2):
        for y in range(8):
            for x in range(8):
                distances = [np.sum((codes[b, :, y, x] - code) ** 2) for code in book]
                assert ids[b, 0, y, x] == int(np.argmin(distances))


@pytest.mark.slow
def test_fitted_tokenizer_beats_a_constant_image_and_is_reproducible() -> None:
    (one, figures), (other, _) = fitted_net(0), fitted_net(3)
    same, _ = fitted_net.__wrapped__(0)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name
    assert not torch.equal(one.codebook, other.codebook)
    # On images that neither was fitted on, compared with the best constant image.
    held_out = levels(8, seed=7).float() / 255
    with torch.no_grad():
        reconstruction = one(held_out)
    constant = held_out.mean((0, 2, 3), keepdim=True)
    assert ((reconstruction - held_out) ** 2).mean() < 0.5 * ((constant - held_out) ** 2).mean()
    assert figures["tokenizer_error"] < 0.5 * figures["constant_error"]
    assert 1 < figures["perplexity"] <= figures["tokens_in_use"] <= 16


@pytest.mark.heavy
def test_metrics_of_a_fit_are_those_of_held_out_images() -> None:
    images = levels(10)
    net, figures = fitted_net(3)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(3))
    held_out = images[order[:1]].double().numpy() / 255
    with torch.no_grad():
        reconstruction = net(torch.from_numpy(held_out).float()).double().numpy()
        ids = net.ids(torch.from_numpy(held_out).float()).flatten().tolist()
    assert figures["tokenizer_error"] == pytest.approx(
        np.mean((reconstruction - held_out) ** 2), rel=1e-4
    )
    variance = np.mean([held_out[:, c].var() for c in range(3)])
    assert figures["constant_error"] == pytest.approx(variance, rel=1e-4)
    frequencies = [ids.count(i) / len(ids) for i in set(ids)]
    entropy = -sum(frequency * math.log(frequency) for frequency in frequencies)
    assert figures["perplexity"] == pytest.approx(math.exp(entropy), rel=1e-6)
    assert figures["tokens_in_use"] == len(frequencies)


def test_codes_are_moving_averages_of_their_tokens() -> None:
    tokens = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(40) % 2
    book = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    first = book.double().numpy().copy()
    codes = EMACodebook(book, tokens, torch.Generator().manual_seed(0))
    codes.update(tokens, ids)
    for number in range(2):
        own = tokens[number::2].double().numpy()
        sums = DECAY * 20 * first[number] + (1 - DECAY) * own.sum(0)
        counts = DECAY * 20 + (1 - DECAY) * len(own)
        np.testing.assert_allclose(book[number], sums / counts, rtol=1e-5)


def test_unused_code_is_replaced() -> None:
    tokens = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    book = torch.tensor([[0.0, 0, 0], [99.0, 99, 99]])
    codes = EMACodebook(book, tokens, torch.Generator().manual_seed(0))
    for _ in range(400):
        codes.update(tokens, torch.zeros(40, dtype=torch.long))
    kept = book[0].clone()
    codes.replace_unused(tokens)
    assert torch.equal(book[0], kept)
    assert (tokens == book[1]).all(1).any()
    assert codes.counts[1] == pytest.approx(20, rel=0.1)  # the mean count


@pytest.mark.heavy
def test_cross_entropy_of_tokens_equals_a_naive_loop() -> None:
    target = fitted_target()
    spec, images, mask = TINY["vit"], smooth_images(TINY["vit"]), half_masks(TINY["vit"])
    hidden = pixel_mask(mask, spec)
    ids, prediction = target.from_images(images), torch.randn(2, 8, 8, 8)
    losses = [
        -prediction[b, :, y, x].double().log_softmax(0)[ids[b, 0, y, x]].item()
        for b in range(2)
        for y in range(8)
        for x in range(8)
        if hidden[b, 4 * y, 4 * x]
    ]
    found = target.loss(prediction, ids, hidden.unsqueeze(1))
    assert found.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_certain_prediction_is_visualised_as_its_decoded_tokens() -> None:
    target, images = fitted_target(), smooth_images(TINY["vit"])
    certain = torch.nn.functional.one_hot(target.from_images(images)[:, 0], 8).permute(0, 3, 1, 2)
    visualised = target.to_pixels(1000.0 * certain) * STD + MEAN
    with torch.no_grad():
        expected = target.tokenizer(images * STD + MEAN)
    torch.testing.assert_close(visualised, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "size", "stride"),
    [("vit_b", 224, 16), ("swin_b", 192, 16), ("vit_pocket", 32, 4), ("swin_pocket", 32, 4)],
)
def test_default_token_stride_tiles_cells(arch: str, size: int, stride: int) -> None:
    assert target_stride(TOKENS, find_spec(arch).at((size, size))) == stride


def stored_tokenizer(ckpt: str) -> dict[str, torch.Tensor]:
    """Return the weights of the tokenizer in a checkpoint."""
    target = load_simmim(ckpt).target
    assert isinstance(target, TokenTarget)
    return target.tokenizer.state_dict()


@pytest.mark.heavy
def test_run_stores_its_tokenizer_for_other_runs(tmp_path: Path, few: Path) -> None:
    choices = ["target=tokens", "epochs=1"]
    first = pretrain_pocket(tmp_path / "first", few, *choices, "tokens=16")
    log = (tmp_path / "first" / "log.txt").read_text()
    assert "predicts 16 visual tokens of 4 x 4 pixels" in log
    fitted = read_checkpoint(str(first)).provenance["fitted"]
    assert fitted["tokenizer_error"] < fitted["constant_error"]
    assert f"perplexity={fitted['perplexity']:.4g}" in log
    own = stored_tokenizer(str(first))

    given = [*choices, f"tokenizer={tmp_path / 'first'}"]
    second = pretrain_pocket(tmp_path / "second", few, *given)
    known = read_checkpoint(str(second)).provenance["target_model"]
    assert known["label"].startswith("the tokenizer of vit_pocket, SimMIM")
    third = pretrain_pocket(tmp_path / "third", few, *choices, "tokens=16", init_from=str(first))
    message = f"the tokenizer's tokens are those of {first}"
    assert message in (tmp_path / "third" / "log.txt").read_text()
    shutil.rmtree(tmp_path / "first")
    for checkpoint in (second, third):
        found = stored_tokenizer(str(checkpoint))
        assert all(torch.equal(value, own[name]) for name, value in found.items())
    load_backbone(str(second))


@pytest.mark.heavy
def test_resumed_run_does_not_fit_again(
    tmp_path: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch uses the tokens of the first, although a fit on its images would differ."""
    choices = ("target=tokens", "tokens=16", "batch_size=10")
    pretrain_first_epoch(tmp_path / "run", few, *choices, monkeypatch=monkeypatch)
    before = read_checkpoint(str(tmp_path / "run"))
    other = tmp_path / "other"
    shutil.copytree(few, other)
    shutil.rmtree(min((other / "train").iterdir()))
    after = read_checkpoint(str(pretrain_pocket(tmp_path / "run", other, *choices, resume=True)))
    assert after.provenance["fitted"] == before.provenance["fitted"]
    assert before.state is not None
    assert after.state is not None
    tokenizer = {name for name in before.state if name.startswith("target.tokenizer.")}
    assert tokenizer
    assert all(torch.equal(before.state[name], after.state[name]) for name in tokenizer)


@pytest.mark.slow
def test_two_processes_use_the_same_tokenizer(tmp_path: Path, few: Path) -> None:
    arguments = ["pretrain", "--arch", "vit_pocket", "--data", str(few), "--quiet"]
    choices = ["target=tokens", "tokens=16", "epochs=1", "warmup_epochs=0"]
    choices += ["batch_size=6", "precision=fp32"]
    arguments += [part for choice in choices for part in ("-o", choice)]
    two_processes(*arguments, "--out", str(tmp_path / "two"), "--shard")
    one = pretrain_pocket(tmp_path / "one", few, *choices)
    found, expected = (
        load_file(tmp_path / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("two", one.parents[1].name)
    )
    assert found.keys() == expected.keys()
    for name in found:
        if name.startswith("target."):
            assert torch.equal(found[name], expected[name]), name
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.heavy
def test_student_of_a_user_tokenizer_loads_without_it(tmp_path: Path, few: Path, own: str) -> None:
    choices = ["target=tokens", "epochs=1"]
    ckpt = pretrain_pocket(tmp_path / "run", few, *choices, f"tokenizer={own}:Brightness")
    # A run initialised from it, with another tokenizer of the same vocabulary.
    other = pretrain_pocket(
        tmp_path / "on", few, *choices, f"tokenizer={own}:Darkness", init_from=str(ckpt)
    )
    known = read_checkpoint(str(ckpt)).provenance["target_model"]
    assert (known["name"], known["channels"], known["stride"]) == (f"{own}:Brightness", 4, 4)
    sys.modules.pop(own)
    (tmp_path / "modules" / "own_tokens.py").unlink()
    model = load_simmim(str(ckpt))
    assert isinstance(model.target, UserTokenTarget)
    images, mask = smooth_images(model.spec), half_masks(model.spec)
    output = model(images, mask)
    assert output.loss.isnan()
    assert output.reconstruction.isfinite().all()
    # Brighter tokens have brighter colours; the other tokenizer reverses the order.
    palette = model.target.palette
    used = palette.mean(1)[palette.sum(1) > 0]
    assert (used.diff() > 0).all()
    other_target = load_simmim(str(other)).target
    assert isinstance(other_target, UserTokenTarget)
    assert torch.equal(other_target.palette, palette.flip(0))
    load_backbone(str(ckpt))


def test_user_tokenizer_defines_tokens_and_visualisation(own: str) -> None:
    spec = TINY["vit"]
    images, mask = smooth_images(spec), half_masks(spec)
    ids = torch.zeros(2, 8, 8, dtype=torch.long)
    grey = (images * STD + MEAN).clamp(0, 1).mean(1)
    for b in range(2):
        for y in range(8):
            for x in range(8):
                square = grey[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                ids[b, y, x] = min(3, int(4 * square.mean()))
    for function in ("Brightness", "Drawing"):
        design = Design(target="tokens", tokenizer=f"{own}:{function}")
        source = load_target_model(design, spec, 8)
        assert source is not None
        model = SimMIM(spec, design, source.known)
        model.target.attach_model(source.model)
        model.target.fit(images.split(1), seed=0)
        assert torch.equal(model.target.from_images(images)[:, 0], ids)
        assert model(images, mask).loss.isfinite()
        certain = torch.nn.functional.one_hot(ids, 4).permute(0, 3, 1, 2) * 1000.0
        visualised = model.eval().target.to_pixels(certain) * STD + MEAN
        shown = visualised.mean(1)[1, ::4, ::4]
        if function == "Drawing":
            torch.testing.assert_close(shown, (ids[1] + 0.5) / 4)
        else:
            palette = [
                (images * STD + MEAN).mean(1)[pixel_mask(ids == i, spec)].mean()
                if i in ids
                else 0.0
                for i in range(4)
            ]
            torch.testing.assert_close(shown, torch.tensor(palette)[ids[1]])


def test_user_tokenizer_with_random_weights_is_reproducible(own: str) -> None:
    """Its weights do not depend on the global generators, whose state it leaves unchanged."""
    spec, design = TINY["vit"], Design(target="tokens", tokenizer=f"{own}:Chance")
    found = []
    for seed in (1, 2):
        sys.modules.pop(own, None)
        seed_everything(seed)
        source = load_target_model(design, spec, 8)
        sampled = (torch.rand(()).item(), np.random.rand(), random.random())
        seed_everything(seed)
        assert sampled == (torch.rand(()).item(), np.random.rand(), random.random())
        assert source is not None
        found.append(
            (source.known.sha256, source.model(smooth_images(spec), torch.zeros(2, 32, 32)))
        )
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "Coarse",
            "stride of 3 pixels, whose tokens do not tile .* use a tokenizer of stride 1, 2, 4",
        ),
        ("Beyond", "returned ids from 0 to 3; with its vocabulary of 2 they must be from 0 to 1"),
        ("Wide", r"returned \(2, 4, 8\) for images .* must return ids \(2, 8, 8\)"),
        ("Real", "returned torch.float32; it must return integers"),
        ("Wordless", "has vocabulary None; it must be an integer of 2 or more"),
        ("broken", "cannot be built .OSError: no such weights"),
        ("number", "returned a int; it must return a torch.nn.Module"),
        ("missing", "cannot be built .AttributeError"),
    ],
)
def test_invalid_user_tokenizer_is_rejected(own: str, function: str, message: str) -> None:
    spec, design = TINY["vit"], Design(target="tokens", tokenizer=f"{own}:{function}")
    black, white = ((torch.full((1, 3, 32, 32), x) - MEAN) / STD for x in (0.0, 1.0))

    def compute_tokens() -> None:
        source = load_target_model(design, spec, 8)
        assert source is not None
        model = SimMIM(spec, design, source.known)
        model.target.attach_model(source.model)
        model.target.from_images(torch.cat([black, white]))

    with pytest.raises(UsageError, match=message):
        compute_tokens()


def test_checkpoint_without_tokenizer_is_rejected(tmp_path: Path) -> None:
    spec = TINY["vit"]
    with pytest.raises(UsageError, match=r"nowhere:at_all cannot be built .ModuleNotFoundError"):
        load_target_model(Design(target="tokens", tokenizer="nowhere:at_all"), spec, 8)
    with pytest.raises(DataError, match="does not exist"):
        load_target_model(Design(target="tokens", tokenizer=str(tmp_path / "none")), spec, 8)
    pixels = save_checkpoint(SimMIM(spec), tmp_path / "pixels")
    with pytest.raises(UsageError, match="contains no tokenizer: it predicts pixels"):
        load_target_model(Design(target="tokens", tokenizer=pixels), spec, 8)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["tokenizer=a:b"], "tokenizer a:b needs target tokens, but the target is pixels"),
        (["tokens=64"], "tokens 64 is the vocabulary .* the target is pixels"),
        (["target=tokens", "tokenizer=a:b", "tokens=64"], "tokens 64 .* tokenizer a:b is given"),
        (
            ["target=tokens", "tokenizer=a:b", "target_size=8"],
            "target_size 8 applies to a tokenizer",
        ),
        (["target=tokens", "loss=l2"], "loss l2 is a distance, but target tokens"),
        (["target=tokens", "norm_target=7"], "norm_target 7 needs target pixels"),
        (["target=tokens", "tokens=1"], "tokens 1 .* use 2 to 65536"),
    ],
)
def test_choices_that_contradict_tokens_are_rejected(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        override(POCKET, assignments)


def test_too_many_tokens_are_rejected() -> None:
    with pytest.raises(UsageError, match="tokens 512 exceed the 64 squares of 4 pixels"):
        fit_tokenizer(levels(2), vocabulary=512, stride=4, seed=0, display=QUIET)
    with pytest.raises(
        UsageError, match=r"131,072 outputs .* fewer -o bins=, clusters= or tokens="
    ):
        SimMIM(find_spec("swin_pocket"), Design(target="tokens", tokens=8192))


def test_tokenizer_weights_are_not_trained_with_the_student() -> None:
    model = SimMIM(TINY["vit"], TOKENS)
    assert not any(name.startswith("target.") for name, _ in model.named_parameters())
    saved = {name for name in model.state_dict() if name.startswith("target.tokenizer.")}
    net = Tokenizer(8, 4, 3, torch.Generator())
    assert saved == {f"target.tokenizer.{name}" for name in net.state_dict()}
    assert asdict(model.design)["tokens"] == 8
