"""Stages: each file here makes one or two kinds of artifact from settings and input folders.

A maker is `make_<kind>(settings, inputs, out, machine) -> facts`: it reads its inputs' folders, writes only
`out`, and returns plain facts (cost, counts, metrics, warnings). It does not know grids, addresses or the store.

    make_subset({"data_frac": 0.1, ...}, {"mixture": ..., "tokenizer": ...}, out, machine)
"""
