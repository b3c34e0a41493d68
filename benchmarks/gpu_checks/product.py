"""The parts of this project that the GPU check uses; the check's other modules import them from here."""

from pathlib import Path

import simmim_bench
from pretrain.masking.masks import sample_image_mask, sample_masks
from pretrain.recipes import PretrainRecipe, default_recipe
from pretrain.run import masked_loss
from pretrain.simmim import SimMIM
from simmim_bench.backbones import load_backbone
from simmim_bench.checkpoints.read import read_checkpoint
from simmim_bench.data.datasets import ImageDataset
from simmim_bench.data.decode import random_crop_flip
from simmim_bench.data.loader import EpochLoader
from simmim_bench.data.sources import any_images
from simmim_bench.distributed import DistContext
from simmim_bench.distributed import full_state as gather_state
from simmim_bench.models.archs import BackboneSpec, find_spec
from simmim_bench.recipe import find_recipe
from simmim_bench.training.accumulation import accumulate_gradients, find_accumulation_steps
from simmim_bench.training.compilation import compile_blocks
from simmim_bench.training.flops import count_flops, peak_flops_per_s
from simmim_bench.training.memory import GIB
from simmim_bench.training.optim import parameter_groups
from simmim_bench.training.precision import autocast
from transfer.detection.model import build_detector
from transfer.detection.recipes import CocoRecipe
from transfer.recipes import RECIPES

# Child processes import the same sources as this one.
SOURCES = Path(simmim_bench.__file__).resolve().parents[1]

__all__ = [
    "GIB",
    "RECIPES",
    "SOURCES",
    "BackboneSpec",
    "CocoRecipe",
    "DistContext",
    "EpochLoader",
    "ImageDataset",
    "PretrainRecipe",
    "SimMIM",
    "accumulate_gradients",
    "any_images",
    "autocast",
    "build_detector",
    "compile_blocks",
    "count_flops",
    "default_recipe",
    "find_accumulation_steps",
    "find_recipe",
    "find_spec",
    "gather_state",
    "load_backbone",
    "masked_loss",
    "parameter_groups",
    "peak_flops_per_s",
    "random_crop_flip",
    "read_checkpoint",
    "sample_image_mask",
    "sample_masks",
]
