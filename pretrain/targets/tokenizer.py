"""A small tokenizer of pictures: a convolutional VQ-VAE (arXiv 1711.00937), and the fitting of one.

In: pictures (B, C, H, W), pixels in [0, 1]. Out: ids (B, H/t, W/t) of a vocabulary, t the tokenizer's stride,
and pictures back from codes. All but the first and the last layer work on the grid of tokens, so that a
tokenizer costs little beside the model that learns from it, and is fitted on a CPU in about a minute.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from pretrain.targets.classes import nearest
from simmim_bench.display import Display
from simmim_bench.errors import UsageError

# Two residual blocks a side, 3x3 and 1x1 with ReLU, as in VQ-VAE's section 4.1; there of 256 channels.
WIDTH, BLOCKS = 64, 2
CODE = (
    16  # ours: numbers a code; wider ones of so small a network leave more of a vocabulary unused
)
COMMITMENT = 0.25  # VQ-VAE, section 3.2 (beta)
DECAY = 0.99  # VQ-VAE, appendix A.1 (gamma)
# Ours, all of them.
LR = 2e-3
BATCH_TOKENS = 2048
PASSES = 30  # over the pictures, where these are few
FEWEST_STEPS, MOST_STEPS = 100, 1000
AS_AUTOENCODER = 0.2  # share of the steps before there are codes, so that k-means finds something
SETTLED = 0.8  # share of the steps after which no code is drawn anew
REDRAW_EVERY = 20
DEAD = 0.05  # of an even share of the tokens: a code that has less is drawn anew
KMEANS_STEPS = 10
KMEANS_POINTS = 16  # a code
HELD_OUT = 8  # one picture in so many is not fitted on


class Residual(nn.Module):
    """Add what a 3x3 and a 1x1 convolution find."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1)
        self.narrow = nn.Conv2d(WIDTH, WIDTH, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, h, w) to the like."""
        residual: Tensor = self.narrow(F.relu(self.wide(F.relu(x))))
        return x + residual


class Tokenizer(nn.Module):
    """An encoder, a codebook (vocabulary, D) and a decoder.

    Args:
        vocabulary: codes.
        stride: pixels a side of one token.
        channels: of the pictures.
    """

    codebook: Tensor

    def __init__(
        self, vocabulary: int, stride: int, channels: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.vocabulary, self.stride = vocabulary, stride
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            self.encoder = nn.Sequential(
                nn.Conv2d(channels, WIDTH, kernel_size=stride, stride=stride),
                *(Residual() for _ in range(BLOCKS)),
                nn.Conv2d(WIDTH, CODE, kernel_size=1),
            )
            self.decoder = nn.Sequential(
                nn.Conv2d(CODE, WIDTH, kernel_size=1),
                *(Residual() for _ in range(BLOCKS)),
                nn.Conv2d(WIDTH, channels * stride**2, kernel_size=1),
                nn.PixelShuffle(stride),
            )
            self.register_buffer("codebook", torch.zeros(vocabulary, CODE))

    def encode(self, pictures: Tensor) -> Tensor:
        """Give the codes (B, D, h, w) of pictures before they are rounded to the codebook's."""
        codes: Tensor = self.encoder(4 * pictures - 2)  # about mean 0 and deviation 1
        return codes

    def ids(self, pictures: Tensor) -> Tensor:
        """Give the tokens (B, h, w) of pictures: the numbers of the nearest codes."""
        codes = self.encode(pictures)
        return nearest(_flat(codes), self.codebook).view(len(codes), *codes.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Give the pictures of codes (B, D, h, w)."""
        pictures: Tensor = self.decoder(codes)
        return (pictures + 2) / 4

    def look_up(self, ids: Tensor) -> Tensor:
        """Give the codes (B, D, h, w) of tokens (B, h, w)."""
        return self.codebook[ids].permute(0, 3, 1, 2)

    def forward(self, pictures: Tensor) -> Tensor:
        """Give pictures as their tokens tell them."""
        return self.decode(self.look_up(self.ids(pictures)))


def _flat(codes: Tensor) -> Tensor:
    return codes.permute(0, 2, 3, 1).flatten(0, 2)


def as_buffers(module: Tokenizer) -> Tokenizer:
    """Turn all parameters of a module into buffers: saved and moved with it, but not trained."""
    for part in module.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module


class Codes:
    """A codebook that follows its tokens by moving averages (VQ-VAE, appendix A.1).

    Args:
        codebook: (K, D), changed in place.
        generator: chooses the tokens that dead codes are drawn from.
    """

    def __init__(self, codebook: Tensor, tokens: Tensor, generator: torch.Generator) -> None:
        self.codebook, self.generator = codebook, generator
        share = len(tokens) / len(codebook)
        self.counts = torch.full((len(codebook),), share)
        self.sums = codebook * share

    def update(self, tokens: Tensor, ids: Tensor) -> None:
        """Move every code towards the mean of the tokens (N, D) that are nearest to it."""
        counts = ids.bincount(minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, ids, tokens)
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5).unsqueeze(1))

    def redraw(self, tokens: Tensor) -> None:
        """Put codes that hardly any token is nearest to in the place of tokens."""
        share = float(self.counts.sum()) / len(self.counts)
        dead = (self.counts < DEAD * share).nonzero()[:, 0]
        chosen = torch.randint(len(tokens), (len(dead),), generator=self.generator)
        self.codebook[dead] = tokens[chosen]
        self.counts[dead], self.sums[dead] = share, tokens[chosen] * share


def fit_tokenizer(
    pictures: Tensor, *, vocabulary: int, stride: int, seed: int, display: Display
) -> tuple[Tokenizer, dict[str, float]]:
    """Fit a tokenizer on the CPU.

    A seed gives the same one on the same kind of processor with as many threads and the same torch; elsewhere
    sums are rounded otherwise.

    Args:
        pictures: (N, C, H, W) uint8, H and W multiples of the stride; at least two. One in eight is kept
            to measure on.

    Returns:
        The tokenizer, and of pictures that it was not fitted on: the mean squared error of its pixels in
        [0, 1], that of the best constant picture, how many codes are in use, and the perplexity of the
        codes' shares.

    Raises:
        UsageError: fewer tokens in the pictures than in the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pictures), generator=generator)
    held_out = max(1, len(pictures) // HELD_OUT)
    unseen, seen = pictures[order[:held_out]], pictures[order[held_out:]]
    a_picture = (pictures.shape[2] // stride) * (pictures.shape[3] // stride)
    if len(seen) * a_picture < vocabulary:
        raise UsageError(
            f"tokens {vocabulary} are more than the {len(seen) * a_picture} squares of {stride} pixels that a "
            f"tokenizer is fitted on; use fewer -o tokens=..., more images or a larger -o img_size=..."
        )
    batch = min(len(seen), max(1, BATCH_TOKENS // a_picture))
    steps = min(MOST_STEPS, max(FEWEST_STEPS, PASSES * len(seen) // batch))
    net = Tokenizer(vocabulary, stride, pictures.shape[1], generator)
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    codes = None
    with display.task("tokenizer", steps) as task:
        for step in range(steps):
            chosen = torch.randint(len(seen), (batch,), generator=generator)
            wanted = seen[chosen].float() / 255
            if step == int(AS_AUTOENCODER * steps):
                codes = _first_codes(net, seen, vocabulary, generator)
            encoded = net.encode(wanted)
            rounded, commitment = encoded, encoded.new_zeros(())
            if codes is not None:
                tokens = _flat(encoded.detach())
                ids = nearest(tokens, net.codebook)
                code = net.look_up(ids.view(len(encoded), *encoded.shape[2:]))
                commitment = F.mse_loss(encoded, code)
                rounded = encoded + (code - encoded).detach()
                codes.update(tokens, ids)
                if step % REDRAW_EVERY == 0 and step < SETTLED * steps:
                    codes.redraw(tokens)
            # 16: the network's own units are deviations of a quarter.
            error = 16 * F.mse_loss(net.decode(rounded), wanted)
            optimizer.zero_grad()
            (error + COMMITMENT * commitment).backward()
            optimizer.step()
            schedule.step()
            task.advance(1, loss=error.item())
    return net, _measure(net, unseen)


def _first_codes(
    net: Tokenizer, pictures: Tensor, vocabulary: int, generator: torch.Generator
) -> Codes:
    """Begin a codebook by k-means on some pictures' codes."""
    a_picture = (pictures.shape[2] // net.stride) * (pictures.shape[3] // net.stride)
    count = math.ceil(KMEANS_POINTS * vocabulary / a_picture)
    chosen = torch.randperm(len(pictures), generator=generator)[:count]
    with torch.no_grad():
        points = _flat(net.encode(pictures[chosen].float() / 255))
    first = points[torch.randperm(len(points), generator=generator)[:vocabulary]]
    with warnings.catch_warnings():
        # A cluster that loses its points stays where it was, and is drawn anew as a dead code.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        found, _ = kmeans2(
            points.double().numpy(), first.double().numpy(), iter=KMEANS_STEPS, minit="matrix"
        )
    net.codebook.copy_(torch.from_numpy(found))
    return Codes(net.codebook, points, generator)


@torch.no_grad()
def _measure(net: Tokenizer, unseen: Tensor) -> dict[str, float]:
    squared, counts = 0.0, torch.zeros(net.vocabulary)
    for part in unseen.split(64):
        wanted = part.float() / 255
        ids = net.ids(wanted)
        counts += ids.flatten().bincount(minlength=net.vocabulary)
        told = net.decode(net.look_up(ids))
        squared += float(((told - wanted) ** 2).sum())
    shares = (counts / counts.sum()).double()
    constant = (unseen.float() / 255).var(dim=(0, 2, 3), correction=0).mean()
    return {
        "tokenizer_error": squared / unseen.numel(),
        "constant_error": float(constant),
        "tokens_in_use": float((counts > 0).sum()),
        "perplexity": float(torch.special.entr(shares).sum().exp()),
    }
