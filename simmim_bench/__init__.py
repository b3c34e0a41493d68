"""simmim-bench: how well does a SimMIM backbone transfer?"""

__version__ = "0.1.0"
