"""Texts that ship with the package; data/prompts.py reads them."""
