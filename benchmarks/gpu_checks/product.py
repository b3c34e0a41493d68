"""The parts of this project that the GPU check uses; the check's other modules import them from here."""

from pathlib import Path

import simmim_bench
from pretrain.masking.masks import sample_image_mask, sample_masks
from pretrain.recipes import PretrainRecipe, default_recipe
from pretrain.run import masked_loss
from pretrain.simmim import SimMIM
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.checkpoint import IMAGENET_MEAN, IMAGENET_STD
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.loader import EpochLoader, batches_on_device
from simmim_bench.data.normalise import normalise
from simmim_bench.data.pretraining_images import any_images
from simmim_bench.data.random_crop import RandomCropFlip
from simmim_bench.distributed import DistContext
from simmim_bench.distributed import full_state as gather_state
from simmim_bench.models.archs import find_spec
from simmim_bench.models.decomposed_position import attend_without_bias
from simmim_bench.models.position_bias import RelativePositionBias
from simmim_bench.models.spec import BackboneSpec
from simmim_bench.recipe import find_recipe
from simmim_bench.training.accumulation import accumulate_gradients, find_accumulation_steps
from simmim_bench.training.compilation import compile_blocks
from simmim_bench.training.finite import FiniteCheck
from simmim_bench.training.flops import count_flops, peak_flops_per_s
from simmim_bench.training.memory import GIB
from simmim_bench.training.optim import parameter_groups, step_unless
from simmim_bench.training.precision import Precision, autocast, gradient_scaler
from transfer.detection.model import build_detector, find_adapter
from transfer.detection.recipes import CocoRecipe
from transfer.recipes import RECIPES

# Child processes import the same sources as this one.
SOURCES = Path(simmim_bench.__file__).resolve().parents[1]

__all__ = [
    "GIB",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "RECIPES",
    "SOURCES",
    "BackboneSpec",
    "CocoRecipe",
    "DistContext",
    "EpochLoader",
    "FiniteCheck",
    "ImageDataset",
    "Precision",
    "PretrainRecipe",
    "RandomCropFlip",
    "RelativePositionBias",
    "SimMIM",
    "accumulate_gradients",
    "any_images",
    "attend_without_bias",
    "autocast",
    "batches_on_device",
    "build_detector",
    "compile_blocks",
    "count_flops",
    "default_recipe",
    "find_accumulation_steps",
    "find_adapter",
    "find_recipe",
    "find_spec",
    "gather_state",
    "gradient_scaler",
    "load_backbone",
    "masked_loss",
    "normalise",
    "parameter_groups",
    "peak_flops_per_s",
    "read_checkpoint",
    "sample_image_mask",
    "sample_masks",
    "step_unless",
]
