"""Golden packs: make them, say how far a port may be off, compare, and find the first wrong op."""
