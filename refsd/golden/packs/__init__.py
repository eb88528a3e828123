"""Packs as files: the manifest, writing, reading, one-file archives."""
