"""One file a family. A new one is a file here and an export in ``raphson.likelihoods``; everything else finds it there.

The file holds the class: derivatives in output space (``Likelihood`` says what each method returns), its names on the
command line (``commands``), the formulas that ``explain`` prints (``definition``), how columns act on its outputs
unless the user says so (``default_columns``), and constructions that ``explain`` and the conformance tests try
(``examples``).
"""
