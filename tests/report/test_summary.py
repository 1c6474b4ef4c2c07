from __future__ import annotations

import torch

from raphson.infer import Estimates
from raphson.linalg import Dense
from raphson.report import Summary


def table(**options):
    labels = (("high", "intercept"), ("high", "age"), ("low", "intercept"), ("low", "age"))
    values = torch.tensor([1.5, -0.0000919, 0.0, 12345.678]).double()
    covariance = Dense(torch.diag(torch.tensor([0.25, 1e-10, 1.0, 4.0]).double()))
    return Estimates(values, covariance, labels, "observed information", **options).to_frame(0.9)


def test_text():
    facts = (("Rows", 944), ("Log-likelihood", -1461.922747312), ("Converged", "yes"))
    text = str(Summary("Multinomial logistic regression", facts, table(), ("A note.",), 0.9))
    lines = text.splitlines()
    assert lines[1].strip() == "Multinomial logistic regression"
    assert lines[3].split() == ["Rows:", "944", "Converged:", "yes"]
    assert lines[4].split() == ["Log-likelihood:", "-1461.923"]
    heading = next(line for line in lines if line.startswith("class: high"))
    assert heading.split() == ["class:", "high", "coef", "std", "err", "z", "P>|z|", "[0.05", "0.95]"]
    age = next(line for line in lines if line.startswith("age"))
    assert age.split() == [
        "age",
        "-9.1900e-05",
        "1.0000e-05",
        "-9.190",
        "<0.001",
        "-0.00010835",
        "-7.5451e-05",
    ]
    assert len([line for line in lines if line.startswith("class: ")]) == 2
    assert lines[-1] == "A note."
    columns = {len(line) for line in lines[6:-1]}
    assert max(columns) == len(lines[0]), "every row fits under the rule"
    # Cells end where their header ends.
    assert age.index("1.0000e-05") + len("1.0000e-05") == heading.index("std err") + len("std err")


def test_not_estimable_is_said():
    flags = torch.tensor([True, False, True, True])
    text = str(Summary("t", (), table(estimable=flags), level=0.9))
    (row,) = (line for line in text.splitlines() if "not estimable" in line)
    assert row.split() == ["age", "not", "estimable"]
    assert "nan" not in text.lower() and "<NA>" not in text


def test_one_unnamed_block():
    frame = Estimates(torch.ones(1), Dense(torch.eye(1)), (("", "age"),), "x").to_frame()
    assert "class:" not in str(Summary("t", (), frame))


def test_html_is_escaped():
    labels = (("<script>", "a & b"),)
    frame = Estimates(torch.ones(1), Dense(torch.eye(1)), labels, "x").to_frame()
    page = Summary("<b>", (("x<y", "<i>"),), frame, ("1 < 2",))._repr_html_()
    for raw in ("<script>", "a & b", "<b>", "x<y", "<i>", "1 < 2"):
        assert raw not in page
    assert "&lt;script&gt;" in page and "a &amp; b" in page and "[0.025" in page and "0.975]" in page


def test_frame_is_the_table():
    frame = table()
    assert Summary("t", (), frame).to_frame() is frame


def test_empty_table():
    assert "t" in str(Summary("t", (("Rows", 3),), table().iloc[:0]))
