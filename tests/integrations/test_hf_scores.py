"""Token scores of Hugging Face models built from a config, against the softmax of their own logits in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")

import transformers
from pyarrow import parquet
from torchassay.scoring import DatasetScorer, score_dataset

V, D = 50, 16
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": D, "intermediate_size": 32}
LONG = {"vocab_size": V, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IDS = [[5, 9, 12, 7, 3, 3, 41], [8], [30, 31, 32], [2, 49, 11, 6]]


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **LONG, num_key_value_heads=2))


def gpt2():
    sizes = {"n_embd": D, "n_layer": 2, "n_head": 2, "n_positions": 32}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **LONG))


def gemma2(softcap=0.05):
    """With a cap that bites: random logits are small."""
    more = {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": softcap}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SIZES, **LONG, **more))


def phi():
    """Its head has a bias."""
    model = transformers.PhiForCausalLM(transformers.PhiConfig(**SIZES, **LONG, num_key_value_heads=2))
    nn.init.normal_(model.lm_head.bias)
    return model


def cohere():
    """It scales its logits behind the head, which is then not all there is."""
    more = {"num_key_value_heads": 2, "logit_scale": 0.0625}
    return transformers.CohereForCausalLM(transformers.CohereConfig(**SIZES, **LONG, **more))


HEADS = {llama: "linear", gpt2: "linear", gemma2: "linear", phi: "linear", cohere: "logits"}


def made(model) -> nn.Module:
    torch.manual_seed(2)
    return model()


def oracle(model: nn.Module, ids: list[int]) -> dict[str, np.ndarray]:
    """Of a row alone, from all its logits."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0, :-1].double()
    log_p = logits.log_softmax(-1)
    p, target = log_p.exp(), torch.tensor(ids[1:], dtype=torch.int64)
    loss = -log_p.gather(1, target[:, None])[:, 0]
    cap = getattr(model.config, "final_logit_softcapping", None)
    slope = 1 - (logits / cap) ** 2 if cap else 1  # the gradient is that by what the head gives, before its cap
    norm = ((p - nn.functional.one_hot(target, V)) * slope).norm(dim=1)
    found = {"loss": loss, "entropy": -(p * log_p).sum(1), "grad_norm": norm}
    return {name: value.numpy() for name, value in found.items()}


@pytest.mark.parametrize("model", HEADS)
def test_token_scores_are_those_of_the_logits(model):
    names = ("loss", "entropy", "grad_norm")
    scorer = DatasetScorer(made(model), names, tokens=True)
    assert scorer.about()["head"] == HEADS[model]
    table = scorer({"index": np.arange(4) + 5, "input_ids": IDS})
    assert table["index"].to_pylist() == [5, 6, 7, 8] and table["tokens"].to_pylist() == [6, 0, 2, 3]
    for row, ids in enumerate(IDS):
        assert table["token_id"][row].as_py() == ids[1:]
        assert table["token_position"][row].as_py() == list(range(1, len(ids)))
        expected = oracle(made(model), ids)
        for name in names:
            np.testing.assert_allclose(table[f"token_{name}"][row].as_py(), expected[name], rtol=2e-5)
            mean = expected[name].mean() if len(ids) > 1 else 0
            np.testing.assert_allclose(table[name][row].as_py(), mean, rtol=2e-5)


def test_the_logits_are_never_held():
    """The head of 50 tokens is not called: only its weight is read."""
    model = made(llama)
    scorer = DatasetScorer(model, "entropy")
    called = []
    model.lm_head.register_forward_hook(lambda *_: called.append(1))
    scorer({"index": [0], "input_ids": [IDS[0]]})
    assert not called
    model(torch.tensor([IDS[0]]))
    assert called


def test_the_revision_is_the_commit_of_the_hub():
    model = made(llama)
    model.config._commit_hash = "0123abcd"
    about = DatasetScorer(model).about()
    assert about["revision"] == "0123abcd" and len(about["weights"]) == 64


def test_the_weights_gradient_is_that_of_autograd():
    model, ids = made(llama), IDS[3]
    table = DatasetScorer(model, ("loss", "weight_grad_norm"), tokens=True)({"index": [0], "input_ids": [ids]})
    hidden = model.eval().base_model(torch.tensor([ids])).last_hidden_state[0, :-1].detach()
    for t, target in enumerate(ids[1:]):
        loss = nn.functional.cross_entropy(model.lm_head(hidden[t])[None], torch.tensor([target]))
        (gradient,) = torch.autograd.grad(loss, model.lm_head.weight)
        found = table["token_weight_grad_norm"][0].as_py()[t]
        np.testing.assert_allclose(found, gradient.norm().item(), rtol=1e-4)


def test_labels_masks_and_padding_on_either_side():
    """What is ignored, padded or masked does not count, and neither does what is predicted from padding."""
    model = made(llama)
    ids, labels = IDS[0], [-100, -100, -100, *IDS[0][3:]]
    scorer = DatasetScorer(model, "loss", tokens=True)
    found = scorer({"index": [0], "input_ids": [ids], "labels": [labels]})
    expected = oracle(model, ids)["loss"]
    assert found["token_position"][0].as_py() == [3, 4, 5, 6]
    np.testing.assert_allclose(found["token_loss"][0].as_py(), expected[2:], rtol=2e-5)
    left = np.array([[0, 0, *ids]])
    mask = np.array([[0, 0, *[1] * len(ids)]])
    found = scorer({"index": [0], "input_ids": left, "attention_mask": mask})
    assert found["token_position"][0].as_py() == list(range(3, 9))  # places of the row as it came


def test_a_masked_language_model_predicts_in_place():
    sizes = transformers.BertConfig(**SIZES, **LONG)
    torch.manual_seed(2)
    model = transformers.BertForMaskedLM(sizes)
    scorer = DatasetScorer(model, "loss", tokens=True)
    assert scorer.about()["head"] == "logits"  # there is a layer between its base and its head
    labels = [-100, 9, -100, 7]
    table = scorer({"index": [0], "input_ids": [[5, 3, 12, 3]], "labels": [labels]})
    assert table["token_position"][0].as_py() == [1, 3] and table["token_id"][0].as_py() == [9, 7]
    with torch.no_grad():
        loss = model.eval()(torch.tensor([[5, 3, 12, 3]]), labels=torch.tensor([labels])).loss
    np.testing.assert_allclose(table["loss"][0].as_py(), loss.item(), rtol=1e-5)


def test_a_classifier_of_sequences():
    torch.manual_seed(2)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, **LONG, num_labels=3))
    batch = {"index": [0, 1], "input_ids": [[5, 3, 12, 3], [9, 8]], "labels": [2, 0]}
    table = DatasetScorer(model, "loss", probs=True)(batch)
    for row, (ids, label) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True)):
        with torch.no_grad():
            out = model.eval()(torch.tensor([ids]), labels=torch.tensor([label]))
        np.testing.assert_allclose(table["loss"][row].as_py(), out.loss.item(), rtol=1e-5)
        np.testing.assert_allclose(table["pred_probs"][row].as_py(), out.logits[0].softmax(0).numpy(), rtol=1e-5)
    assert table["given"].to_pylist() == [2, 0]


def test_a_model_that_stops_before_its_head():
    torch.manual_seed(2)
    model = transformers.LlamaModel(transformers.LlamaConfig(**SIZES, **LONG, num_key_value_heads=2))
    with pytest.raises(TypeError) as error:
        DatasetScorer(model, "entropy")({"index": [0], "input_ids": [[1, 2]]})
    got = "BaseModelOutputWithPast with last_hidden_state"
    assert str(error.value) == f"DatasetScorer: model must give logits, or an output with .logits, got {got}"


def test_a_saved_dataset_into_parts(tmp_path):
    """Rows of different lengths, a text that no model takes, and a token out of the vocabulary."""
    datasets = pytest.importorskip("datasets")
    random = np.random.default_rng(0)
    ids = [random.integers(V, size=random.integers(1, 12)).tolist() for _ in range(40)]
    ids[23][0] = V
    data = datasets.Dataset.from_dict({"text": ["a"] * 40, "input_ids": ids})
    data.save_to_disk(str(tmp_path / "data"))
    how = {"tokens": True, "batch_size": 4, "batches_per_part": 3}
    done = score_dataset(made(llama), tmp_path / "data", tmp_path / "out", on_error="skip", **how)
    assert (done.rows, done.skipped, done.parts) == (39, 1, 3)
    assert done.tokens == sum(len(row) - 1 for number, row in enumerate(ids) if number != 23)
    tables = [parquet.ParquetFile(path).read() for path in sorted((tmp_path / "out").glob("part-*.parquet"))]
    assert [row for table in tables for row in table["index"].to_pylist()] == [*range(23), *range(24, 40)]
    rows = {row["index"]: row for table in tables for row in table.to_pylist()}
    for number in (0, 21, 22, 39):  # 22 shares a batch with the broken row
        expected = oracle(made(llama), ids[number])
        np.testing.assert_allclose(rows[number]["token_loss"], expected["loss"], rtol=2e-5)
