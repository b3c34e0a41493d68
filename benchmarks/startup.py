"""Time a command from the start of its process to the first forward pass of its network.

    python benchmarks/startup.py --before ../older-checkout --json benchmarks/results/startup.json

Commands run on a small synthetic data set, each round once from every source tree; the files are in the system's cache
after the first round, which does not count. A command ends where its first forward pass begins.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from timing import compare, report

HERE = Path(__file__).resolve().parents[1]
CKPT = "random:vit_pocket"
TRANSFERS = {"linear": "imagenet", "knn": "imagenet", "fewshot": "imagenet", "imagenet": "imagenet"}
TRANSFERS |= {"coco": "coco", "ade20k": "ade20k"}
# Ends the process in a hook of torch that runs before every forward pass. The hook is registered when torch is there,
# which the program itself imports. Transforms are modules, too, without parameters.
UNTIL_FIRST_STEP = """
import os, runpy, sys

def end(module, arguments):
    if next(module.parameters(), None) is not None:
        os._exit(0)

def register(event, arguments):
    torch_module = sys.modules.get("torch.nn.modules.module")
    add = getattr(torch_module, "register_module_forward_pre_hook", None)
    if event == "import" and add is not None and not registered:
        registered.append(add(end))

registered = []
sys.addaudithook(register)
sys.argv[0] = "simmim-bench"
runpy.run_module("simmim_bench", run_name="__main__", alter_sys=True)
sys.exit("the command ended before a forward pass")
"""


def main() -> None:
    """Parse the arguments, time the commands and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--before", type=Path, help="an older checkout to compare with")
    parser.add_argument("--commands", nargs="+", choices=("pretrain", *TRANSFERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    trees = {} if arguments.before is None else {" before": arguments.before.resolve()}
    trees |= {"": HERE}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        counts = ["--imagenet", "40", "20", "--coco", "2", "2", "--ade20k", "2", "2"]
        pocket = [sys.executable, "-m", "simmim_bench", "pocket", str(data), "--img-size", "32"]
        subprocess.run([*pocket, *counts], cwd=folder, env=environment(HERE), check=True)
        timings = []
        for name in arguments.commands or ("pretrain", *TRANSFERS):
            alternatives = {
                f"{name}{label}": partial(run_until_first_step, tree, name, data, folder)
                for label, tree in trees.items()
            }
            timings += compare(alternatives, rounds=arguments.rounds)
    report(
        "seconds from the start of a process to the first forward pass, speed relative to before",
        timings,
        arguments.json,
        images="40 of 32 x 32 pixels",
    )


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which Python imports the packages of a source tree."""
    return {**os.environ, "PYTHONPATH": str(tree)}


def run_until_first_step(tree: Path, name: str, data: Path, folder: Path) -> None:
    """Run a command of a source tree until its first forward pass begins.

    Args:
        folder: an empty run directory is created in it.
    """
    with TemporaryDirectory(dir=folder) as run:
        if name == "pretrain":
            command = ["pretrain", "--arch", "vit_pocket", "--data", str(data / "imagenet")]
        else:
            command = ["transfer", name, "--ckpt", CKPT, "--data", str(data / TRANSFERS[name])]
        done = subprocess.run(
            [sys.executable, "-c", UNTIL_FIRST_STEP, *command, "--out", str(Path(run) / "out")],
            cwd=folder,
            env=environment(tree),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


if __name__ == "__main__":
    main()
