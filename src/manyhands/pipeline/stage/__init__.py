"""One stage of a pipeline: its layers, driven by values and gradients that arrive by name.

Read ``routing`` first (which gradient goes where next, and why in that order), then ``engine``. ``local`` runs all
stages in one process and ``reference`` is what they must equal: plain autograd, without any of this.
"""
