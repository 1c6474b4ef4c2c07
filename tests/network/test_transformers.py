"""Models as they come from Hugging Face's ``transformers``, small and with random weights: nightly only."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import raphson as rp

from .kfac_oracle import block_places, gauss_newton

pytestmark = pytest.mark.nightly
transformers = pytest.importorskip("transformers")

VOCABULARY, N, T, CLASSES = 11, 4, 5, 3
SMALL = {"num_labels": CLASSES, "vocab_size": VOCABULARY}


def tokens() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(N, T, dtype=torch.long)
    mask[1, 3:] = 0
    return {"input_ids": torch.randint(1, VOCABULARY, (N, T), generator=g), "attention_mask": mask}


def gpt2(heads: int = 2) -> nn.Module:
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=1, n_head=heads)
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        **SMALL,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        **SMALL, dim=8, n_layers=1, n_heads=2, hidden_dim=8, max_position_embeddings=8
    )
    return transformers.DistilBertForSequenceClassification(config)


def deberta() -> nn.Module:
    config = transformers.DebertaV2Config(
        **SMALL,
        **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
        **{"max_position_embeddings": 8, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        **{"position_buckets": 4, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
    )
    return transformers.DebertaV2ForSequenceClassification(config)


class T5(nn.Module):
    """The decoder starts from the same tokens."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.T5Config(
            vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
        self.inner = transformers.T5ForConditionalGeneration(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=input_ids).logits


def swin() -> nn.Module:
    config = transformers.Swinv2Config(
        **{"image_size": 8, "patch_size": 2, "num_channels": 1, "embed_dim": 4, "depths": [2], "num_heads": [2]},
        **{"window_size": 2, "mlp_ratio": 1.0, "num_labels": CLASSES},
    )
    return transformers.Swinv2ForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": gpt2,
    "bert": bert,
    "distilbert": distilbert,
    "deberta": deberta,
    "t5": T5,
    "swin v2": swin,
}


def objective_of(name: str) -> rp.Objective:
    torch.manual_seed(0)
    module = MODELS[name]().double().eval()
    g = torch.Generator().manual_seed(1)
    positions = name in {"gpt2", "t5"}
    y = torch.randint(VOCABULARY, (N, T), generator=g) if positions else torch.randint(CLASSES, (N,), generator=g)
    x = {"pixel_values": torch.randn(N, 1, 8, 8, dtype=torch.float64, generator=g)} if name == "swin v2" else tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.RaphsonWarning)  # attention that runs in a fused kernel
        return rp.Objective(module, rp.Categorical(), (x, y))


@pytest.mark.parametrize("name", MODELS)
def test_models_as_they_come(name: str) -> None:
    """Diagonal, products and norms are exact; corrected Kronecker blocks have the exact trace."""
    objective = objective_of(name)
    exact = gauss_newton(objective)
    # T5 takes the variance of its norms in single precision, whatever its own is
    close = {"rtol": 1e-5, "atol": 1e-8} if name == "t5" else {"rtol": 1e-8, "atol": 1e-12}
    torch.testing.assert_close(rp.ggn(objective, "diagonal").diagonal(), exact.diagonal(), **close)
    v = torch.randn(objective.n_parameters, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(rp.ggn(objective) @ v, exact @ v, **close)
    rows = rp.example_gradients(objective)
    torch.testing.assert_close(rp.example_gradient_norms(objective), rows.norm(dim=1), **close)
    factors, corrected = rp.kfac(objective), rp.ekfac(objective)
    assert bool(torch.isfinite(factors @ v).all())
    for places, block, row in zip(block_places(factors), corrected.blocks, factors.report().rows, strict=True):
        if " + " not in row[2]:
            torch.testing.assert_close(block.trace(), exact.diagonal()[places].sum(), **close)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_of_training_as_they_come(name: str) -> None:
    """The loss is the objective's, a step lowers it, and no table of positions has factors that mix the rows."""
    objective = objective_of(name)
    batch, before = next(objective.batches()), objective.value()
    opt = rp.optim.KFAC(objective.model.module, rp.Categorical())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.RaphsonWarning)
        torch.testing.assert_close(opt.step(batch.x, batch.y), before)
    assert float(objective.value()) < float(before)


def test_a_batch_with_labels_and_the_remedy_that_its_refusal_names() -> None:
    """Labels moved by one give the loss that the model itself gives."""
    torch.manual_seed(0)
    model, batch = gpt2().double().eval(), tokens()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with pytest.raises(rp.InputError, match=r"F.pad\(labels\[:, 1:\], \(0, 1\), value=-100\)"):
        rp.Objective(model, nn.CrossEntropyLoss(), [{**batch, "labels": labels}])
    moved = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rp.RaphsonWarning)
        objective = rp.Objective(model, nn.CrossEntropyLoss(), [(batch, moved)])
    torch.testing.assert_close(objective.value(), model(**batch, labels=labels).loss.detach().double())
