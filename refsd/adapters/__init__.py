"""LoRA and its relatives: small files that change the weights of a model before anything runs.

kinds.py has the formulas, names.py whose names mean which weight, formats.py what a file holds (with
peft_config.py, which scales PEFT wrote),
file.py where it is, applied.py merges it into a network and takes it out, loaded.py is a
pipeline's. docs/adapters.md says how they are used.
"""
