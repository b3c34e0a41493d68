"""The functions of `import simmim_bench as sb`, one module per function; the command line calls the same code.

Each module has a public function, such as `transfer`, with the keyword arguments that a notebook passes, and a
`run_...` function that takes checked options. The command line parses its options and calls the second one. Arguments
are checked before torch is imported. The public function changes no setting of the caller's process: see
`simmim_bench.library`.
"""
