"""Runs of the reference as packs: what is recorded, under which name, and computed again."""
