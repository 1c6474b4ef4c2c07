"""Tables: reading them, and turning their columns into the matrix of a model."""

from __future__ import annotations

from ._columns import Category as Category
from ._columns import Number as Number
from ._design import Design as Design
from ._design import TrainingData as TrainingData
from ._formula import FormulaCoding as FormulaCoding
from ._read import read_table as read_table
