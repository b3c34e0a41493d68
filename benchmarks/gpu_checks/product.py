"""The parts of this project that the GPU check uses; the check's other modules import them from here."""

from pathlib import Path

from simmim_bench.archs import BackboneSpec, find_spec
from simmim_bench.checkpoint import IMAGENET_MEAN, IMAGENET_STD, read_checkpoint
from simmim_bench.engine import _backward as accumulate_gradients
from simmim_bench.engine import parts_that_fit as find_accumulation_steps
from simmim_bench.images import normalise, random_crop_flip
from simmim_bench.kernels import autocast, count_flops
from simmim_bench.kernels import product_flops_per_s as peak_flops_per_s
from simmim_bench.memory import GIB
from simmim_bench.optim import parameter_groups
from simmim_bench.sources import any_images
from simmim_bench.team import Team as DistContext
from simmim_bench.team import full_state as gather_state
from transfer.dense_recipes import CocoRecipe
from transfer.detection_model import build_detector

import simmim_bench
from pretrain.masking import mask_generator, random_masks, recipe_masks
from pretrain.recipes import PretrainRecipe, default_recipe
from pretrain.simmim import SimMIM
from simmim_bench.backbones import load_backbone
from simmim_bench.data import EpochLoader, ImageDataset
from simmim_bench.recipe import find_recipe
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
    "ImageDataset",
    "PretrainRecipe",
    "SimMIM",
    "accumulate_gradients",
    "any_images",
    "autocast",
    "build_detector",
    "count_flops",
    "default_recipe",
    "find_accumulation_steps",
    "find_recipe",
    "find_spec",
    "gather_state",
    "load_backbone",
    "mask_generator",
    "normalise",
    "parameter_groups",
    "peak_flops_per_s",
    "random_crop_flip",
    "random_masks",
    "read_checkpoint",
    "recipe_masks",
]
