"""Attacks on smkit and on its peers, counted: nothing may be lost, nobody let in, no bad input without a clear answer.

    nox -s torture                              every group, at full length, beside the peers
    nox -s torture -- killing damage --rounds 20 --seed 7 --subjects smkit,lightning

Each group is a module with `attack(campaign)`; it says in its docstring what it does in a round and when a round counts
as survived. The short form of each is a test beside it, of smkit alone.
"""
