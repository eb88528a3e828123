"""The ops on the CPU: importing this package declares its kernels for the backend "numba"."""
