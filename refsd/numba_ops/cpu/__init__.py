"""The ops on the CPU, one file a family. Not offered as a backend yet (refsd.registry.BACKENDS).

Import refsd.ops before a kernel file: a kernel is declared for an op that must be there.
"""
