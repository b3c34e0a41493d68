"""Run the command line as `python -m simmim_bench`, which is what `torchrun -m` needs."""

from simmim_bench.cli.main import main

main()
