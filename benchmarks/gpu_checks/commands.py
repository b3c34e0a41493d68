"""Command checks: every command ends as it should on a GPU, alone and as one of several processes.

NCCL refuses two processes on one GPU. They exchange tensors by gloo instead (`two_ranks.py`), so that
everything else is as it is on two GPUs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_checks.harness import CheckFailed, Setup
from gpu_checks.product import SOURCES, read_checkpoint
from gpu_checks.report import Findings

PRODUCT = (sys.executable, "-m", "simmim_bench")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
HERE = Path(__file__).resolve().parent
ONE_RANK = (*TORCHRUN, "1")
TWO_RANKS = (*TORCHRUN, "2", str(HERE / "two_ranks.py"))

LIMIT = 120.0  # seconds that processes started together may take
GRACE = 8.0  # seconds from SIGTERM to SIGKILL
POLL = 0.05
SHOWN = 500  # characters of a process' output in a failure's message

FEW_ITERATIONS = ("-o", "max_iters=12", "-o", "warmup_iters=2")
# Options of `pretrain` by the name of a run; all but the first are skipped in a tiny run.
PRETRAIN_RUNS: dict[str, tuple[str, ...]] = {
    "accumulate": ("--arch", "vit_pocket", "--accumulate", "3"),
    "checkpointing": ("--arch", "swin_pocket", "--grad-checkpointing"),
    "visible": ("--arch", "vit_pocket", "-o", "encoder_input=visible"),
    "resnet": ("--arch", "resnet_pocket"),
    "convnext": ("--arch", "convnext_pocket"),
}
# Task, data and options of `transfer` by the name of a run.
TRANSFER_RUNS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "imagenet": ("imagenet", "imagenet", ()),
    "knn": ("knn", "imagenet", ()),
    "coco": ("coco", "coco", FEW_ITERATIONS),
    "linear": ("linear", "imagenet", ("-o", "epochs=3")),
    # One strength of regularisation: on few images a GPU is slow at comparing all of them.
    "fewshot": ("fewshot", "imagenet", ("--fraction", "10%", "-o", "l2=0.001")),
    "ade20k": ("ade20k", "ade20k", FEW_ITERATIONS),
    "coco_swin": ("coco", "coco", ("--recipe", "coco_pocket", *FEW_ITERATIONS)),
}
TINY_TRANSFER_RUNS = ("imagenet", "coco")
PRECISION_RUNS = ("imagenet", "coco", "ade20k", "coco_swin")  # tasks that train the backbone
DOCTOR_CODES = (0, 3, 4)  # all fine; a framework is missing; data or memory are too small


@dataclass(frozen=True)
class Started:
    """A process of a command, and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """Return what the process has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def start(setup: Setup, name: str, *words: object, launcher: Sequence[str] = PRODUCT) -> Started:
    """Start a command.

    Args:
        name: of its log.
        words: the command's arguments.
        launcher: what comes before them.
    """
    path = [str(SOURCES), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = "1" if setup.tiny else "2"
    log = setup.logs / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*launcher, *map(str, words)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": threads},
            cwd=setup.scratch,
        )
    setup.children.append(process)
    return Started(name, process, log)


def finish(
    jobs: Sequence[Started], expected: Sequence[int] = (0,), limit: float = LIMIT
) -> Findings:
    """Wait for processes; return their exit codes by name.

    Args:
        expected: the exit codes that are right.
        limit: seconds that all of them may take.

    Raises:
        CheckFailed: a process ended with another code, or not in time.
    """
    end = time.monotonic() + limit
    codes: dict[str, int | str] = {}
    for job in jobs:
        try:
            codes[job.name] = job.process.wait(max(POLL, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            stop(job.process)
            codes[job.name] = f"stopped after {limit:.0f} s"
    wrong = [job for job in jobs if codes[job.name] not in expected]
    if wrong:
        told = "; ".join(f"{j.name}: {codes[j.name]}: {j.output()[-SHOWN:]}" for j in wrong)
        raise CheckFailed(told, {"exit_codes": codes})
    return {"exit_codes": codes}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process: torchrun ends its children when it is asked to."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def pocket_data(setup: Setup) -> Path:
    """Return the directory of the synthetic data sets; the first call writes them."""
    root = setup.scratch / "pocket"
    with setup.data_lock:
        if not root.is_dir():
            counts = (60, 30, 8, 4, 8, 4) if setup.tiny else (400, 80, 48, 16, 48, 16)
            words = ("--imagenet", *counts[:2], "--coco", *counts[2:4], "--ade20k", *counts[4:])
            finish([start(setup, "pocket", "pocket", root, *words)])
    return root


def pretrained(setup: Setup) -> Path:
    """Return the run of a pretrained model in the setup's precision; the first call pretrains it."""
    run = setup.scratch / "runs" / "pretrained"
    with setup.checkpoint_lock:
        if not run.is_dir():
            words = ("--arch", "vit_pocket", "-o", f"precision={setup.precision}")
            finish([_pretrain(setup, "pretrained", *words)])
    return run


def doctor(setup: Setup) -> Findings:
    """Check that `doctor` inspects the machine; what it misses there is not judged."""
    job = start(setup, "doctor", "doctor")
    codes = finish([job], expected=DOCTOR_CODES)
    if "Traceback" in job.output():
        raise CheckFailed(job.output()[-SHOWN:], codes)
    return codes


def pretrain(setup: Setup) -> Findings:
    """Check `pretrain` with accumulation, recomputed activations, visible patches, and CNNs."""
    names = list(PRETRAIN_RUNS)[: 1 if setup.tiny else None]
    pocket_data(setup)
    return finish([_pretrain(setup, name, *PRETRAIN_RUNS[name]) for name in names])


def pretrain_compiled(setup: Setup) -> Findings:
    """Check `pretrain --compile`, which compiles training, evaluation, and another batch size."""
    pocket_data(setup)
    job = _pretrain(setup, "compiled", "--arch", "vit_pocket", "--compile")
    return finish([job], limit=200)


def transfer(setup: Setup) -> Findings:
    """Check every task of `transfer`; detection with a ViT's and a Swin's feature pyramid."""
    data, checkpoint = pocket_data(setup), pretrained(setup)
    jobs = []
    for name in TINY_TRANSFER_RUNS if setup.tiny else TRANSFER_RUNS:
        task, layout, options = TRANSFER_RUNS[name]
        if name in PRECISION_RUNS:
            options = (*options, "-o", f"precision={setup.precision}")
        ckpt = "random:swin_pocket" if name == "coco_swin" else checkpoint
        out = setup.scratch / "runs" / name
        where = ("--ckpt", ckpt, "--data", data / layout, "--out", out)
        jobs.append(start(setup, name, "transfer", task, *where, *options))
    return finish(jobs)


def resume(setup: Setup) -> Findings:
    """Check that a run stopped by SIGTERM and resumed ends with the weights of an uninterrupted one.

    A GPU adds in no fixed order. What two uninterrupted runs differ by is therefore the unit.
    """
    pocket_data(setup)
    options = ("--arch", "vit_pocket", "--seed", 3, "-o", "epochs=4", "-o", "warmup_epochs=1")
    whole = [_pretrain(setup, name, *options) for name in ("whole", "twin")]
    stopped = _pretrain(setup, "stopped", *options)
    metrics = setup.scratch / "runs" / "stopped" / "metrics.jsonl"
    while stopped.process.poll() is None and _lines(metrics) < 3:
        time.sleep(POLL)
    stopped.process.send_signal(signal.SIGTERM)
    finish([stopped], expected=(128 + signal.SIGTERM,))
    finish([*whole, _pretrain(setup, "stopped", *options, "--resume", log="resumed")])
    weights = {
        name: read_checkpoint(str(setup.scratch / "runs" / name)).state or {}
        for name in ("whole", "twin", "stopped")
    }

    def distance(name: str) -> float:
        differences = (
            weights["whole"][k].float() - weights[name][k].float() for k in weights[name]
        )
        return max(float(difference.abs().max()) for difference in differences)

    found = {"twin": distance("twin"), "resumed": distance("stopped")}
    if not weights["stopped"] or found["resumed"] > 5 * found["twin"] + 1e-5:
        raise CheckFailed(
            f"weights of a resumed run are off by {found['resumed']:.3g}, those of a repeated run by "
            f"{found['twin']:.3g}",
            found,
        )
    return found


def one_rank(setup: Setup) -> Findings:
    """Check one process under torchrun: `pretrain` trains, `--shard` is refused."""
    pocket_data(setup)
    launcher = (*ONE_RANK, "-m", "simmim_bench")
    alone = _pretrain(setup, "alone", "--arch", "vit_pocket", launcher=launcher)
    words = ("--arch", "vit_pocket", "--shard")
    refused = _pretrain(setup, "shard_refused", *words, launcher=launcher)
    found = finish([alone])["exit_codes"] | finish([refused], expected=(1,))["exit_codes"]
    if "--shard" not in refused.output() or "error: " not in refused.output():
        raise CheckFailed(refused.output()[-SHOWN:], found)
    return {"exit_codes": found}


def nccl(setup: Setup) -> Findings:
    """Check DDP and FSDP2 over NCCL in one process, and gathering their state (`nccl_rank.py`)."""
    return finish([start(setup, "nccl", launcher=(*ONE_RANK, str(HERE / "nccl_rank.py")))])


def two_ranks(setup: Setup) -> Findings:
    """Check two processes that share one GPU: `pretrain`, and each task that trains."""
    pocket_data(setup)
    cnn = ("--arch", "resnet_pocket", "--accumulate", 2)
    jobs = [_pretrain(setup, "two_pretrain", *cnn, launcher=TWO_RANKS)]
    if not setup.tiny:
        data, checkpoint = pocket_data(setup), pretrained(setup)
        for task, layout in (
            ("imagenet", "imagenet"),
            ("linear", "imagenet"),
            ("coco", "coco"),
            ("ade20k", "ade20k"),
        ):
            options = FEW_ITERATIONS if task == layout and task != "imagenet" else ()
            out = setup.scratch / "runs" / f"two_{task}"
            where = ("--ckpt", checkpoint, "--data", data / layout, "--out", out)
            words = ("transfer", task, *where, *options, "-o", "num_workers=0")
            jobs.append(start(setup, f"two_{task}", *words, launcher=TWO_RANKS))
    return finish(jobs)


def two_ranks_sharded(setup: Setup) -> Findings:
    """Check `pretrain --shard` in two processes that share one GPU."""
    pocket_data(setup)
    words = ("--arch", "vit_pocket", "--shard", "--accumulate", 2)
    return finish([_pretrain(setup, "two_shard", *words, launcher=TWO_RANKS)])


def _pretrain(
    setup: Setup,
    name: str,
    *options: object,
    launcher: Sequence[str] = PRODUCT,
    log: str | None = None,
) -> Started:
    """Start a short `pretrain` whose run is called `name`; later options win."""
    where = ("--data", pocket_data(setup) / "imagenet", "--out", setup.scratch / "runs" / name)
    batch_size = 16 if setup.tiny else 64
    changes = ("epochs=1", "warmup_epochs=0", f"batch_size={batch_size}", "num_workers=2")
    short = [word for change in changes for word in ("-o", change)]
    return start(setup, log or name, "pretrain", *where, *short, *options, launcher=launcher)


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n") if path.is_file() else 0
