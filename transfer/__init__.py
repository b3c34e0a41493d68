"""Downstream transfer: adapters, recipes, runners."""
