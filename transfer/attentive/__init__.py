"""The attentive probe: a classifier that pools the tokens of a frozen backbone by attention.

Blocks, heads and learning rates are compared in one pass of the backbone over random crops, whose tokens are not
stored.
"""
