"""Tables: reading them, and turning their columns into the matrix of a model."""

from __future__ import annotations

from raphson.table._columns import LARGEST_WHOLE as LARGEST_WHOLE
from raphson.table._columns import Category as Category
from raphson.table._columns import Number as Number
from raphson.table._columns import refuse_inexact as refuse_inexact
from raphson.table._design import Design as Design
from raphson.table._design import TrainingData as TrainingData
from raphson.table._formula import FormulaCoding as FormulaCoding
from raphson.table._offsets import split_offsets as split_offsets
from raphson.table._read import read_table as read_table
from raphson.table._rows import complete_rows as complete_rows
from raphson.table._size import least_bytes as least_bytes
from raphson.table._terms import split_formula as split_formula
from raphson.table._terms import split_survival as split_survival
from raphson.table._variables import Variable as Variable
