"""`simmim-bench convert`: write a checkpoint in another format, size or window."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from simmim_bench.api.arguments import check_ckpt
from simmim_bench.cli.options import NumbersCommand, complete_ckpt, read_numbers, read_size
from simmim_bench.data.pixel_format import VALUE_RANGES, ValueRange


@click.command(cls=NumbersCommand)
@click.argument("src", metavar="SRC", shell_complete=complete_ckpt)
@click.argument("dst", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--to",
    type=click.Choice(["native", "timm", "detectron2", "mmseg"]),
    default="native",
    show_default=True,
    help="Format of DST.",
)
@click.option(
    "--img-size", metavar="H[,W]", help="Resize the position tables to this size, in pixels."
)
@click.option(
    "--window-size",
    type=click.IntRange(1),
    help="Resize the position tables to this attention window, in tokens.",
)
@click.option(
    "--mean",
    callback=read_numbers,
    metavar="R G B",
    help="Normalisation mean that the weights expect, if the file has none, one value per channel; pixels are in "
    "[0, 1].",
)
@click.option(
    "--std",
    callback=read_numbers,
    metavar="R G B",
    help="Normalisation standard deviation that the weights expect, if the file has none.",
)
@click.option(
    "--in-chans",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Adapt the first convolution of RGB weights to N channels by timm's rule; --mean and --std are those of the "
    "new images. DST holds the backbone alone.",
)
@click.option(
    "--value-range",
    type=click.Choice(VALUE_RANGES),
    help="Values of the images: 8 bits, 16 bits, or as stored, in whose unit --mean and --std are.",
)
@click.option(
    "--num-heads",
    type=click.IntRange(1),
    help="Attention heads of the ViT in SRC, if the file has no position table and no configuration.",
)
@click.option(
    "--source-window-size",
    type=click.IntRange(1),
    help="Attention window of the Swin V2 in SRC, in tokens, if the file does not show it.",
)
@click.option(
    "--source-img-size",
    metavar="H[,W]",
    help="Image size that SRC was trained with, in pixels, if the file does not show it.",
)
@click.option(
    "--timm-model",
    metavar="NAME",
    help="Name of the timm model whose weights SRC holds; its heads, window and image size are used.",
)
@click.option(
    "--checkpoint-key", metavar="KEY", help="Entry of SRC with the weights, such as teacher."
)
@click.option(
    "--strip-prefix", metavar="P", help="Prefix of the weights in SRC, such as module.encoder_k."
)
@click.option("--label", help="Name of the leaderboard's row; the file's name by default.")
@click.option("--overwrite", is_flag=True, help="Replace DST.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with all names.")
def convert(
    src: str,
    dst: Path,
    to: str,
    img_size: str | None,
    window_size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    in_chans: int | None,
    value_range: ValueRange | None,
    num_heads: int | None,
    source_window_size: int | None,
    source_img_size: str | None,
    timm_model: str | None,
    checkpoint_key: str | None,
    strip_prefix: str | None,
    label: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint: read SRC, resize it if asked to, write DST, and compare the features.

    SRC is any CKPT: SimMIM's official files (pretraining and fine-tuning, ViT and Swin), Swin
    Transformer's, MAE, BEiT, DINO, DINOv2, MoCo v3, timm, MMPretrain's ViT and Swin, transformers' ViT,
    ViT-MAE, DINOv2, BEiT, Swin and Swin V2 (folders, also in shards), the layouts of lightly, solo-learn
    and Lightning, safetensors, a checkpoint directory, timm:NAME, hub:ORG/NAME, py:package.module:factory.
    Pickles are never executed.

    \b
    native      a checkpoint directory            --ckpt DST
    timm        config.json, model.safetensors    timm.create_model("local-dir:DST", pretrained=True)
    detectron2  a .pth                            for MODEL.WEIGHTS: Detectron2's Swin, or our ViT adapter
    mmseg       a .pth                            init_cfg of its SwinTransformer or BEiT

    \b
      simmim-bench convert simmim_pretrain__vit_base.pth checkpoints/simmim_vit_b
      simmim-bench convert mae_pretrain_vit_base.pth mae_384 --img-size 384
      simmim-bench convert runs/swin_b swin_b.pth --to mmseg
      simmim-bench convert mae_pretrain_vit_base.pth mae_grey --in-chans 1 --mean 0.18 --std 0.22
    """
    if (mean is None) == (std is None):  # else a usage error
        check_ckpt(src)
    from simmim_bench.checkpoints.convert import convert as run_conversion
    from simmim_bench.checkpoints.formats import WRITERS
    from simmim_bench.checkpoints.third_party.encoders import Encoder
    from simmim_bench.checkpoints.third_party.hints import Hints

    if to in WRITERS:
        write = WRITERS[to]
    else:
        from transfer.export import WRITERS as FRAMEWORKS

        write = FRAMEWORKS[to]
    done = run_conversion(
        src,
        dst,
        write=write,
        to=to,
        img_size=None if img_size is None else read_size(img_size),
        window_size=window_size,
        mean=mean,
        std=std,
        in_chans=in_chans,
        value_range=value_range,
        label=label,
        overwrite=overwrite,
        hints=Hints(
            num_heads=num_heads,
            window_size=source_window_size,
            img_size=None
            if source_img_size is None
            else read_size(source_img_size, "--source-img-size"),
            timm_model=timm_model,
            checkpoint_key=checkpoint_key,
            strip_prefix=strip_prefix,
        ),
    )
    if done.warning:
        click.echo(f"warning    {done.warning}", err=True)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(done)))
        return
    size = "x".join(map(str, done.img_size))
    window = f", window {done.window_size}" if done.window_size else ""
    click.echo(f"read       {done.source}: {done.method}, {done.arch}, {size} pixels{window}")
    if done.read:
        others = f"; not {', '.join(done.read['others'])}" if done.read["others"] else ""
        place = Encoder(done.read["entry"], done.read["prefix"])
        click.echo(f"encoder    {place}{others}")
    for what in ("matched", "resized", "missing", "unused"):
        names = getattr(done, what)
        shown = "" if what == "matched" else ", ".join(names[:6]) + (", ..." if names[6:] else "")
        click.echo(f"{what:<10} {len(names)}  {shown}".rstrip())
    click.echo(f"features   relative difference {done.feature_difference:.1e}")
    click.echo(f"wrote      {done.destination}\nuse        {done.usage}")
