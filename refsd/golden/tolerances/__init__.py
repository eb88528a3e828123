"""How far a port may be off: number formats, bounds of ops, spread through networks."""
