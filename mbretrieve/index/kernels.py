"""What an index does with many tokens, in C++, where this machine's compiler has built it: see ``kernels.cpp``."""

from mbretrieve.compiled import FLOAT, INT, LONG, POINTER, Compiled

KERNELS = Compiled(
    "mbretrieve.index",
    "kernels",
    ("-O3", "-march=native", "-ffp-contract=fast"),
    {
        "mbretrieve_nearest_entries": (POINTER, INT, INT, INT, POINTER, LONG, POINTER, INT),
        "mbretrieve_scan_lists": (
            *(POINTER, LONG, INT, POINTER, INT, POINTER, POINTER, INT),
            *(POINTER, POINTER, POINTER, LONG, POINTER),
            *(LONG, POINTER, POINTER, POINTER, INT),
        ),
        "mbretrieve_candidates": (POINTER, POINTER, LONG, LONG, FLOAT, LONG, POINTER, POINTER, POINTER),
    },
)
