"""Hugging Face's Trainer with our samplers: stopped, resumed, and left alone."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
import torchassay as ta
from integrations.launch import two_ranks
from torchassay import doctor
from torchassay.samplers import InfoBatch, MixedOrder, OnlineImportance, SelectiveBackprop, Shuffle

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from torchassay.integrations.transformers import SamplerMixin  # noqa: E402

N, BATCH, EPOCHS, WORDS = 43, 5, 3, 17
PLAIN = {"dropout": 0.0, "optim": "sgd"}  # Adam makes much of the last digits of gradients that are 0


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


class SelectiveTrainer(SamplerMixin, transformers.Trainer):
    """Logs what it was trained on."""

    seen: list

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), inputs["index"].tolist()] if "index" in inputs else []
        return super().training_step(model, inputs, *args, **kwargs)


def texts(language: bool) -> datasets.Dataset:
    random = torch.Generator().manual_seed(3)
    words = torch.randint(WORDS, (N, 6), generator=random)
    columns = {"input_ids": words.tolist(), "comment": [f"text {i}" for i in range(N)]}
    if language:
        length = torch.randint(3, 7, (N, 1), generator=random)
        return datasets.Dataset.from_dict(columns | {"labels": words.where(torch.arange(6) < length, -100).tolist()})
    return datasets.Dataset.from_dict(columns | {"label": torch.randint(3, (N,), generator=random).tolist()})


def model_of(language: bool, dropout: float) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    if language:
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
        sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **sizes))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), dropout)
    config = transformers.BertConfig(vocab_size=WORDS, num_labels=3, max_position_embeddings=8, **sizes)
    return transformers.BertForSequenceClassification(config)


def trainer_of(folder, sampler=None, picker=None, language=False, kind=SelectiveTrainer, dropout=0.1, **options):
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        **{
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": EPOCHS,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "seed": 5,
        }
        | options,
    )
    ours = {"sampler": sampler, "picker": picker} if issubclass(kind, SamplerMixin) else {}
    return kind(model=model_of(language, dropout), args=args, train_dataset=texts(language), **ours)


METHODS = {
    "Shuffle": Shuffle,
    "MixedOrder": partial(MixedOrder, pivot=0, by="loss"),
    "InfoBatch": partial(InfoBatch, epochs=EPOCHS, delta=0.7),
    "OnlineImportance": OnlineImportance,
    "OnlineImportance-keep": partial(OnlineImportance, keep=0.7),
}


@pytest.mark.parametrize("language, accumulated", [(False, 1), (True, 2)], ids=["classes", "language"])
@pytest.mark.parametrize("name, workers", [*((name, 0) for name in METHODS), ("OnlineImportance", 2)])
def test_a_stopped_training_goes_on(tmp_path, name, workers, language, accumulated):
    """In each epoch and between them."""
    made = partial(METHODS[name], N, batch_size=BATCH, seed=7)
    fitted = partial(trainer_of, language=language, gradient_accumulation_steps=accumulated)
    fitted = partial(fitted, dataloader_num_workers=workers, dataloader_prefetch_factor=2 if workers else None)
    whole = fitted(tmp_path, made(), save_strategy="steps", save_steps=2)
    whole.train()
    folders = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for folder in folders[:-1:3]:
        resumed = fitted(tmp_path / "resumed", made())
        resumed.train(resume_from_checkpoint=str(folder))
        assert resumed.seen == whole.seen[-len(resumed.seen) :]
        assert resumed.state.global_step == whole.state.global_step
        for key, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], value), (folder.name, key)


def losses_of(trainer) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("language", [False, True], ids=["classes", "language"])
def test_with_the_sampler_off_everything_is_trainers_own(tmp_path, language):
    """Bit for bit."""
    fitted = partial(trainer_of, tmp_path, language=language, num_train_epochs=2, gradient_accumulation_steps=2)
    mine = fitted()
    mine.train()
    theirs = fitted(kind=transformers.Trainer)
    theirs.train()
    assert losses_of(mine) == losses_of(theirs) and len(losses_of(mine)) == 10
    for key, value in theirs.model.state_dict().items():
        assert torch.equal(mine.model.state_dict()[key], value)


def test_shuffle_is_plain_training(tmp_path):
    """Against Trainer with the same order: equal but for the last digits of the loss."""

    order = Shuffle(N, batch_size=BATCH, seed=7).plan().tolist()

    class Fixed(transformers.Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return order

    mine = trainer_of(tmp_path, Shuffle(N, batch_size=BATCH, seed=7), num_train_epochs=1, **PLAIN)
    theirs = trainer_of(tmp_path, kind=Fixed, num_train_epochs=1, **PLAIN)
    for trainer in (mine, theirs):
        trainer.train()
    assert [i for batch in mine.seen for i in batch] == order
    torch.testing.assert_close(torch.tensor(losses_of(mine)), torch.tensor(losses_of(theirs)), rtol=1e-5, atol=0)
    for key, value in theirs.model.state_dict().items():
        torch.testing.assert_close(mine.model.state_dict()[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("language", [False, True], ids=["classes", "language"])
def test_losses_and_signals_of_samples(tmp_path, language):
    """Weighted, divided by the number of samples of the whole step; signals and losses are means over tokens."""
    sampler = OnlineImportance(N, batch_size=BATCH, signal="loss", alpha=0.0)
    trainer = trainer_of(tmp_path, sampler, language=language, num_train_epochs=1, dropout=0.0)
    trainer.train()
    sampler.set_epoch(1)
    batch = next(iter(trainer.get_train_dataloader()))
    index, weight, labels = batch["index"], batch["weight"], batch["labels"]
    assert set(batch) == {"input_ids", "labels", "index", "weight"} and len(set(weight.tolist())) > 1
    with torch.no_grad():
        logits = trainer.model(batch["input_ids"]).logits
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(2 * BATCH))
    if language:
        tokens = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")
        expected = torch.stack([row[kept].mean() for row, kept in zip(tokens, labels[:, 1:] != -100, strict=True)])
    else:
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, (weight * expected).sum() / (2 * BATCH))
    torch.testing.assert_close(sampler.memory["importance"][index], expected)


def test_accumulated_batches_and_ranks_count_as_one_batch(tmp_path):
    """8 samples, 4 + 4 of them, and 4 in each of two processes; the last step has 3, 3 and 1 + 2."""
    one = trainer_of(tmp_path, Shuffle(N, batch_size=8, seed=7), per_device_train_batch_size=8, **PLAIN)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2} | PLAIN
    two = trainer_of(tmp_path, Shuffle(N, batch_size=4, seed=7), **options)
    for trainer in (one, two):
        trainer.train()
    assert one.state.global_step == two.state.global_step == 18
    of_ranks = two_ranks("transformers", tmp_path)
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[key], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_ranks[0]["model"][key], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(of_ranks[0]["model"][key], of_ranks[1]["model"][key])
    epoch = [i for rank in of_ranks for batch in rank["seen"][:6] for i in batch]
    assert sorted(epoch) == list(range(N))


def test_a_picker_is_saved_too(tmp_path):
    made = partial(SelectiveBackprop, seed=2, beta=1.0)
    fitted = partial(trainer_of, language=True, save_strategy="steps", save_steps=4)
    whole = fitted(tmp_path, picker=made())
    whole.train()
    picked = whole.picker.counters()
    assert 0.2 < picked["backward_items"] / picked["forward_items"] < 0.8
    resumed = fitted(tmp_path / "resumed", picker=made())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))
    assert resumed.picker.counters() | {"scoring_ms": 0} == picked | {"scoring_ms": 0}
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value)


def test_evaluation_is_trainers_own(tmp_path):
    mine, theirs = trainer_of(tmp_path, Shuffle(N, batch_size=BATCH)), trainer_of(tmp_path, kind=transformers.Trainer)
    found = [trainer.evaluate(trainer.train_dataset)["eval_loss"] for trainer in (mine, theirs)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "made, options, text",
    [
        (
            lambda: Shuffle(N, batch_size=8),
            {},
            "per_device_train_batch_size is 5, the sampler's batch_size 8: Shuffle(batch_size=5)",
        ),
        (
            lambda: Shuffle(9, batch_size=BATCH),
            {},
            "train_dataset has 43 samples, the sampler 9: Shuffle(len(train_dataset), ...)",
        ),
        (
            lambda: Shuffle(N, batch_size=BATCH),
            {"ignore_data_skip": True},
            "a resumed training would count the steps of its epoch anew: "
            "ignore_data_skip=False, at no cost with a sampler",
        ),
        (
            lambda: Shuffle(N, batch_size=BATCH, rank=0, num_replicas=2),
            {},
            "1 processes train, the Shuffle shares out among 2: make the sampler behind "
            "torch.distributed.init_process_group",
        ),
        (
            lambda: MixedOrder(N, batch_size=BATCH, pivot=0, layers="0"),
            {},
            "MixedOrder needs uncertainty: a Trainer gives signals of the logits alone",
        ),
    ],
)
def test_what_would_be_wrong(tmp_path, made, options, text):
    with pytest.raises(ValueError) as error:
        trainer_of(tmp_path, made(), **options)
    assert str(error.value) == f"SamplerMixin: {text}"


def test_what_may_surprise(tmp_path):
    sampler = InfoBatch(N, batch_size=BATCH, epochs=EPOCHS)
    text = (
        "SamplerMixin: epochs of InfoBatch have other lengths than the learning rate counts: "
        "TrainingArguments(max_steps=...), or a schedule by epochs"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        trainer_of(tmp_path, sampler, lr_scheduler_type="linear")
    with pytest.warns(UserWarning, match="OnlineImportance's batches are drawn 6 batches ahead"):
        sampler = OnlineImportance(N, batch_size=BATCH)
        trainer_of(tmp_path, sampler, dataloader_num_workers=2, dataloader_prefetch_factor=3)


def test_an_index_that_trainer_would_strip(tmp_path):
    trainer = trainer_of(tmp_path, kind=transformers.Trainer)
    assert doctor.check(trainer) == []
    trainer.train_dataset = ta.Indexed(trainer.train_dataset)
    fix = "class SelectiveTrainer(SamplerMixin, Trainer), or remove_unused_columns=False"
    assert doctor.check(trainer) == [(f"remove_unused_columns takes the index out of the batches: {fix}", True)]


def test_errors(tmp_path):
    with pytest.raises(TypeError) as error:
        trainer_of(tmp_path, sampler=[1])
    assert str(error.value) == "SamplerMixin: sampler must be a torchassay.samplers.CrossEpoch, got list"
    trainer = trainer_of(tmp_path, Shuffle(N, batch_size=BATCH), max_steps=4, save_strategy="steps", save_steps=4)
    trainer.train()
    with pytest.raises(ValueError) as error:
        trainer.train()
    expected = "a new one, or resume_from_checkpoint be given"
    assert str(error.value) == f"SamplerMixin: sampler must be {expected}, got one at batch 4 of epoch 0"
    (tmp_path / "checkpoint-4" / "torchassay_sampler_0").unlink()
    with pytest.raises(ValueError) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    expected = "the state of the sampler, torchassay_sampler_0, as without save_only_model"
    assert str(error.value) == f"SamplerMixin: {tmp_path / 'checkpoint-4'} must hold {expected}, got none"
