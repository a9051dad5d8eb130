"""Hugging Face's Trainer with our samplers: stopped, resumed, and left alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchassay as ta
from torchassay.samplers import InfoBatch, MixedOrder, OnlineImportance, SelectiveBackprop, Shuffle

transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

from torchassay.integrations.transformers import SamplerMixin  # noqa: E402

N, BATCH, EPOCHS, WORDS = 43, 5, 3, 17


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


def model_of(language: bool) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    if language:
        sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, **sizes))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(vocab_size=WORDS, num_labels=3, max_position_embeddings=8, **sizes)
    return transformers.BertForSequenceClassification(config)


def trainer_of(folder, sampler=None, picker=None, language=False, kind=SelectiveTrainer, **options):
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
    ours = {} if kind is transformers.Trainer else {"sampler": sampler, "picker": picker}
    return kind(model=model_of(language), args=args, train_dataset=texts(language), **ours)


METHODS = {
    "Shuffle": Shuffle,
    "MixedOrder": partial(MixedOrder, pivot=0, by="loss"),
    "InfoBatch": partial(InfoBatch, epochs=EPOCHS, delta=0.5),
    "OnlineImportance": OnlineImportance,
    "OnlineImportance-keep": partial(OnlineImportance, keep=0.7),
}


@pytest.mark.parametrize("language, accumulated", [(False, 1), (True, 2)], ids=["classes", "language"])
@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_training_goes_on(tmp_path, name, language, accumulated):
    """In each epoch and between them."""
    made = partial(METHODS[name], N, batch_size=BATCH, seed=7)
    fitted = partial(trainer_of, language=language, gradient_accumulation_steps=accumulated)
    whole = fitted(tmp_path, made(), save_strategy="steps", save_steps=2)
    whole.train()
    folders = sorted(tmp_path.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    for folder in folders[:-1:2]:
        resumed = fitted(tmp_path / "resumed", made())
        resumed.train(resume_from_checkpoint=str(folder))
        assert resumed.seen == whole.seen[-len(resumed.seen) :]
        assert resumed.state.global_step == whole.state.global_step
        for key, value in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], value), (folder.name, key)
