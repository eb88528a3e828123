"""LoRA and its relatives: small files that change the weights of a model before anything runs.

kinds.py has the formulas, names.py whose names mean which weight, formats.py what a file holds, and
peft_config.py which scales PEFT wrote into it; file.py finds and reads it, applied.py merges it
into a network and takes it out again; loaded.py and methods.py are a pipeline's. docs/adapters.md
says how they are used.
"""
