"""A small image tokenizer: a convolutional VQ-VAE (arXiv 1711.00937), and its fitting.

It maps images (B, C, H, W), pixels in [0, 1], to ids (B, H/t, W/t) of a vocabulary, where t is its stride, and decodes
codes to images. All layers but the first and the last work on the grid of tokens, so that a tokenizer costs little
compared with the model that learns from it, and is fitted on a CPU in about a minute.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.targets.classes import nearest_centre
from simmim_bench.display import Display
from simmim_bench.errors import UsageError

# Two residual blocks in each network, 3x3 and 1x1 with ReLU, as in VQ-VAE's section 4.1 (256 channels there).
WIDTH, BLOCKS = 64, 2
CODE_DIM = 16  # ours: with larger codes, so small a network leaves more of the vocabulary unused
COMMITMENT = 0.25  # VQ-VAE, section 3.2 (beta)
DECAY = 0.99  # VQ-VAE, appendix A.1 (gamma)
# The following values are ours.
LR = 2e-3
BATCH_TOKENS = 2048
EPOCHS = 30  # passes over the images, within the limits on the steps
MIN_STEPS, MAX_STEPS = 100, 1000
WARMUP_FRACTION = 0.2  # of the steps: as a plain autoencoder, so that k-means finds good codes
SETTLED_FRACTION = 0.8  # of the steps: unused codes are not replaced afterwards
REPLACE_EVERY = 20  # steps between replacements of unused codes
DEAD = 0.05  # a code with less than this fraction of the mean number of tokens is replaced
KMEANS_STEPS = 10
KMEANS_POINTS = 16  # per code
HELD_OUT = 8  # one image in 8 is held out for the metrics


class Residual(nn.Module):
    """A residual block of a 3x3 and a 1x1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1)
        self.narrow = nn.Conv2d(WIDTH, WIDTH, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, WIDTH, h, w) to the same shape."""
        residual: Tensor = self.narrow(F.relu(self.wide(F.relu(x))))
        return x + residual


class Tokenizer(nn.Module):
    """An encoder, a codebook (vocabulary, D) and a decoder.

    Args:
        vocabulary: number of codes.
        stride: pixels per side of a token.
        channels: channels of the images.
        generator: its initial seed determines the weights.
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
                nn.Conv2d(WIDTH, CODE_DIM, kernel_size=1),
            )
            self.decoder = nn.Sequential(
                nn.Conv2d(CODE_DIM, WIDTH, kernel_size=1),
                *(Residual() for _ in range(BLOCKS)),
                nn.Conv2d(WIDTH, channels * stride**2, kernel_size=1),
                nn.PixelShuffle(stride),
            )
            self.register_buffer("codebook", torch.zeros(vocabulary, CODE_DIM))

    def encode(self, images: Tensor) -> Tensor:
        """Return the encoder's output (B, D, h, w) before quantisation."""
        codes: Tensor = self.encoder(4 * images - 2)  # about mean 0 and standard deviation 1
        return codes

    def ids(self, images: Tensor) -> Tensor:
        """Return the token ids (B, h, w) of images: the indices of the nearest codes."""
        codes = self.encode(images)
        return nearest_centre(_flatten_tokens(codes), self.codebook).view(
            len(codes), *codes.shape[2:]
        )

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, D, h, w) to images."""
        images: Tensor = self.decoder(codes)
        return (images + 2) / 4

    def lookup(self, ids: Tensor) -> Tensor:
        """Return the codes (B, D, h, w) of token ids (B, h, w)."""
        return self.codebook[ids].permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images from their tokens."""
        return self.decode(self.lookup(self.ids(images)))


def _flatten_tokens(codes: Tensor) -> Tensor:
    """Reshape codes (B, D, h, w) to (B * h * w, D)."""
    return codes.permute(0, 2, 3, 1).flatten(0, 2)


def freeze_as_buffers(module: Tokenizer) -> Tokenizer:
    """Convert all parameters of a module to buffers, which are saved and moved with it but not trained."""
    for submodule in module.modules():
        for name, parameter in [*submodule.named_parameters(recurse=False)]:
            delattr(submodule, name)
            submodule.register_buffer(name, parameter.detach())
    return module


class EMACodebook:
    """Updates of a codebook by exponential moving averages of its tokens (VQ-VAE, appendix A.1).

    Args:
        codebook: (K, D), updated in place.
        tokens: (N, D) encoder outputs; their number initialises the counts.
        generator: samples the tokens that replace unused codes.
    """

    def __init__(self, codebook: Tensor, tokens: Tensor, generator: torch.Generator) -> None:
        self.codebook, self.generator = codebook, generator
        mean_count = len(tokens) / len(codebook)
        self.counts = torch.full((len(codebook),), mean_count)
        self.sums = codebook * mean_count

    def update(self, tokens: Tensor, ids: Tensor) -> None:
        """Move every code towards the mean of the tokens (N, D) with its id (N,)."""
        counts = ids.bincount(minlength=len(self.codebook)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, ids, tokens)
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5).unsqueeze(1))

    def replace_unused(self, tokens: Tensor) -> None:
        """Replace codes that hardly any token is assigned to by randomly sampled tokens."""
        mean_count = float(self.counts.sum()) / len(self.counts)
        dead = (self.counts < DEAD * mean_count).nonzero()[:, 0]
        chosen = torch.randint(len(tokens), (len(dead),), generator=self.generator)
        self.codebook[dead] = tokens[chosen]
        self.counts[dead], self.sums[dead] = mean_count, tokens[chosen] * mean_count


def fit_tokenizer(
    images: Tensor, *, vocabulary: int, stride: int, seed: int, display: Display
) -> tuple[Tokenizer, dict[str, float]]:
    """Fit a tokenizer on the CPU.

    The result is reproducible for a seed on the same kind of processor with the same number of threads and the same
    torch; elsewhere, sums are rounded differently.

    Args:
        images: (N, C, H, W) uint8, H and W multiples of the stride, N at least 2. One image in eight is held out.
        vocabulary: number of tokens.
        stride: pixels per side of a token.

    Returns:
        The tokenizer, and its metrics on the held-out images: the mean squared error of pixels in [0, 1], that of the
        best constant image, the number of codes in use, and the perplexity of the code frequencies.

    Raises:
        UsageError: the images have fewer tokens than the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    held_out_count = max(1, len(images) // HELD_OUT)
    held_out, training = images[order[:held_out_count]], images[order[held_out_count:]]
    tokens_per_image = (images.shape[2] // stride) * (images.shape[3] // stride)
    if len(training) * tokens_per_image < vocabulary:
        raise UsageError(
            f"tokens {vocabulary} exceed the {len(training) * tokens_per_image} squares of {stride} pixels that the "
            "tokenizer is fitted on; use fewer -o tokens=..., more images or a larger -o img_size=..."
        )
    net = Tokenizer(vocabulary, stride, images.shape[1], generator)
    _train(net, training, tokens_per_image, generator, display)
    return net, _evaluate(net, held_out)


def _train(
    net: Tokenizer,
    images: Tensor,
    tokens_per_image: int,
    generator: torch.Generator,
    display: Display,
) -> None:
    """Train a plain autoencoder, and from `WARMUP_FRACTION` of the steps on with quantised codes."""
    batch = min(len(images), max(1, BATCH_TOKENS // tokens_per_image))
    steps = min(MAX_STEPS, max(MIN_STEPS, EPOCHS * len(images) // batch))
    optimizer = torch.optim.AdamW(net.parameters(), LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    codebook = None
    with display.task("tokenizer", steps) as task:
        for step in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=generator)
            expected = images[chosen].float() / 255
            if step == int(WARMUP_FRACTION * steps):
                codebook = _init_codebook(net, images, generator)
            encoded = net.encode(expected)
            quantised, commitment = encoded, encoded.new_zeros(())
            if codebook is not None:
                tokens = _flatten_tokens(encoded.detach())
                ids = nearest_centre(tokens, net.codebook)
                code = net.lookup(ids.view(len(encoded), *encoded.shape[2:]))
                commitment = F.mse_loss(encoded, code)
                quantised = encoded + (code - encoded).detach()
                codebook.update(tokens, ids)
                if step % REPLACE_EVERY == 0 and step < SETTLED_FRACTION * steps:
                    codebook.replace_unused(tokens)
            # 16: the network works in units of a quarter of the pixel range.
            error = 16 * F.mse_loss(net.decode(quantised), expected)
            optimizer.zero_grad()
            (error + COMMITMENT * commitment).backward()
            optimizer.step()
            schedule.step()
            task.advance(1, loss=error.item())


def _init_codebook(net: Tokenizer, images: Tensor, generator: torch.Generator) -> EMACodebook:
    """Initialise the codebook by k-means on the encoder's outputs for a sample of the images."""
    from scipy.cluster.vq import kmeans2

    tokens_per_image = (images.shape[2] // net.stride) * (images.shape[3] // net.stride)
    count = math.ceil(KMEANS_POINTS * net.vocabulary / tokens_per_image)
    chosen = torch.randperm(len(images), generator=generator)[:count]
    with torch.no_grad():
        points = _flatten_tokens(net.encode(images[chosen].float() / 255))
    initial = points[torch.randperm(len(points), generator=generator)[: net.vocabulary]]
    with warnings.catch_warnings():
        # An empty cluster keeps its centre and is replaced later as an unused code.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        found, _ = kmeans2(
            points.double().numpy(), initial.double().numpy(), iter=KMEANS_STEPS, minit="matrix"
        )
    net.codebook.copy_(torch.from_numpy(found))
    return EMACodebook(net.codebook, points, generator)


@torch.no_grad()
def _evaluate(net: Tokenizer, images: Tensor) -> dict[str, float]:
    squared_error, counts = 0.0, torch.zeros(net.vocabulary)
    for batch in images.split(64):
        expected = batch.float() / 255
        ids = net.ids(expected)
        counts += ids.flatten().bincount(minlength=net.vocabulary)
        reconstruction = net.decode(net.lookup(ids))
        squared_error += float(((reconstruction - expected) ** 2).sum())
    frequencies = (counts / counts.sum()).double()
    constant = (images.float() / 255).var(dim=(0, 2, 3), correction=0).mean()
    return {
        "tokenizer_error": squared_error / images.numel(),
        "constant_error": float(constant),
        "tokens_in_use": float((counts > 0).sum()),
        "perplexity": float(torch.special.entr(frequencies).sum().exp()),
    }
