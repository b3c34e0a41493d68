"""The command line, one module per command. It is the only room that may import both `pretrain` and `transfer`,
and it imports them, and torch, inside the commands: `--help` and tab completion stay fast. It may import every
other room; no other room imports it."""
