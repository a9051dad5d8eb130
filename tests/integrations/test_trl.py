"""Masks of TRL's trainers, and GRPO trainings, beside torchassay's in their place."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchassay as ta

pytest.importorskip("trl")
import transformers
from integrations import entropy_masks, tiny_grpo
from ranks import on_ranks
from torchassay.integrations import trl as ours
from torchassay.integrations.trl import OneReadMixin, PromptSamplerMixin
from trl import GRPOTrainer, RLOOConfig, RLOOTrainer

pytestmark = pytest.mark.filterwarnings("default")  # others' warnings are not ours to mend


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


class OurTrainer(OneReadMixin, GRPOTrainer):
    pass


class Chosen(PromptSamplerMixin, GRPOTrainer):
    pass


# ---- masks of high entropy


def trl_mask(entropies, mask, fraction):
    alone = SimpleNamespace(pad_across_processes=lambda values, **_: values, gather=lambda values: values)
    return GRPOTrainer.get_high_entropy_mask(SimpleNamespace(accelerator=alone), entropies, mask, 1 - fraction)


def our_mask(entropies, mask, fraction):
    alone = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1))
    return OneReadMixin.get_high_entropy_mask(alone, entropies, mask, 1 - fraction)


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_mask_and_trls(fraction):
    """All different: as many as the share says, and TRL's interpolated quantile may pass one more or fewer."""
    generator = torch.Generator().manual_seed(7)
    more = set()
    for n in range(1, 40):
        entropies = 3 * torch.rand(3, n, generator=generator)
        mask = (torch.rand(3, n, generator=generator) < 0.7).long()
        found, others = our_mask(entropies, mask, fraction), trl_mask(entropies, mask, fraction)
        assert found.sum() == int(int(mask.sum()) * fraction + 0.5 + 5e-7)
        assert not (found & (mask == 0)).any()
        assert (found & others).sum() == min(found.sum(), others.sum())
        more.add(int(others.sum() - found.sum()))
    assert more <= {-1, 0, 1}


def test_mask_of_ties():
    """Completions of one prompt have the same first entropy: TRL keeps all that equal its threshold, we the first."""
    entropies = torch.tensor([[2.0, 1.0, 0.5], [2.0, 1.1, 0.4], [2.0, 1.2, 0.3], [2.0, 1.3, 0.2]])
    mask = torch.ones(4, 3)
    assert trl_mask(entropies, mask, 0.25)[:, 0].all()
    assert our_mask(entropies, mask, 0.25)[:, 0].tolist() == [True, True, True, False]
    assert not our_mask(entropies, torch.zeros(4, 3), 0.25).any()


def test_mask_of_more_tokens_than_a_quantile_takes():
    entropies = torch.arange(1, (1 << 24) + 9.0).sqrt_()[None]
    mask = torch.ones(1, 1, dtype=torch.bool).expand_as(entropies)
    with pytest.raises(RuntimeError, match="too large"):
        trl_mask(entropies, mask, 0.25)
    found = our_mask(entropies, mask, 0.25)
    assert found.sum() == (1 << 22) + 2


def test_mask_over_two_ranks(tmp_path):
    """Of different lengths, with equal values on both: as one process for all of them."""
    generator = torch.Generator().manual_seed(8)
    entropies = [(4 * torch.rand(2, n, generator=generator)).round(decimals=1) for n in (9, 6)]
    masks = [(torch.rand(e.shape, generator=generator) < 0.8).long() for e in entropies]
    found = on_ranks(2, tmp_path, entropy_masks.mask_of, entropies, masks, 0.7)
    flat = [torch.cat([values.flatten() for values in each])[None] for each in (entropies, masks)]
    assert torch.equal(torch.cat([values.flatten() for values in found]), our_mask(*flat, 0.3)[0])
    others = trl_mask(*flat, 0.3)[0]
    assert (others | ~torch.cat([values.flatten() for values in found])).all()  # TRL's holds ours


# ---- training


@pytest.mark.parametrize(
    "options", [{}, {"top_entropy_quantile": 0.4, "entropy_coef": 0.01}, {"num_iterations": 2}], ids=str
)
def test_the_loss_curve_is_trls(tmp_path, options):
    same = []  # of the masks of each step: until one of equal entropies at the threshold is left out

    class Both(OurTrainer):
        def get_high_entropy_mask(self, *args):
            found = super().get_high_entropy_mask(*args)
            same.append(torch.equal(found, GRPOTrainer.get_high_entropy_mask(self, *args)))
            return found

    curves = []
    for kind in (GRPOTrainer, Both):
        trainer = tiny_grpo.trainer(kind, tmp_path, max_steps=4, temperature=0.9, seed=5, **options)
        trainer.train()
        curves.append(tiny_grpo.curve(trainer))
    steps = (*same, False).index(False) if "top_entropy_quantile" in options else 4
    assert steps > 0 and min(map(abs, curves[0]["grad_norm"])) > 0.1
    for name, values in curves[1].items():
        assert len(values) == 4 and values[:steps] == pytest.approx(curves[0][name][:steps], rel=1e-4, abs=1e-6), name


def test_the_loss_curve_of_rloo(tmp_path):
    curves = []
    for kind in (RLOOTrainer, type("Ours", (OneReadMixin, RLOOTrainer), {})):
        trainer = tiny_grpo.trainer(kind, tmp_path, config=RLOOConfig, max_steps=3, beta=0.0)
        trainer.train()
        curves.append(tiny_grpo.curve(trainer))
    assert min(curves[0]["grad_norm"]) > 1
    for name, values in curves[1].items():
        assert values == pytest.approx(curves[0][name], rel=1e-4, abs=1e-6), name


def test_reference_model_has_the_head_too(tmp_path):
    """A KL term that compares two heads of the same kind: exactly 0 at the first step."""
    tiny_grpo.model().save_pretrained(tmp_path / "policy")
    policy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    trainer = tiny_grpo.trainer(OurTrainer, tmp_path, policy=policy, max_steps=2, beta=0.1)
    assert trainer.ref_model.forward.__qualname__ == trainer.model.forward.__qualname__
    assert trainer.ref_model.forward.__code__.co_filename == ours.__file__
    trainer.train()
    kl = [log["kl"] for log in trainer.state.log_history if "kl" in log]
    assert kl[0] == 0 and kl[1] > 0


def sampler_of(kind, **more):
    if kind == "MixedOrder":
        return ta.samplers.MixedOrder(8, batch_size=2, drop_last=True, pivot=0, by="loss", seed=5, **more)
    return ta.samplers.OnlineImportance(8, batch_size=2, drop_last=True, signal="loss", eps=0.1, seed=5, **more)


@pytest.mark.parametrize(
    ("kind", "stop_at", "options"),
    [
        ("OnlineImportance", 5, {}),
        ("MixedOrder", 5, {}),
        ("OnlineImportance", 4, {}),  # between two epochs
        ("OnlineImportance", 5, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        # a step trains on two generations, or two steps on one
        ("OnlineImportance", 5, {"gradient_accumulation_steps": 2, "steps_per_generation": 1}),
        ("MixedOrder", 5, {"num_iterations": 2}),
        ("OnlineImportance", 5, {"num_iterations": 2}),
    ],
    ids=str,
)
def test_prompts_of_a_resumed_training(tmp_path, kind, stop_at, options):
    """Stopped, by an exception, and resumed: the prompts and the losses of an uninterrupted run."""
    a_step = 2 if options.get("steps_per_generation") == 1 else 1  # generations
    options = options | {"max_steps": 8 * options.get("num_iterations", 1) // a_step}
    whole, whole_sampler = tiny_grpo.Odd(), sampler_of(kind)
    uninterrupted = tiny_grpo.trainer(Chosen, tmp_path, whole, sampler=whole_sampler, **options)
    uninterrupted.train()
    assert len(whole.rows) == 8 and all(rows == [rows[0]] * 4 + [rows[4]] * 4 for rows in whole.rows)
    assert sorted(row for rows in whole.rows[:4] for row in rows[::4]) == list(range(8))
    assert whole.rows[4:] != whole.rows[:4]

    options |= {"save_strategy": "steps", "save_steps": 1}
    first = tiny_grpo.Odd(stop_at)
    with pytest.raises(KeyboardInterrupt):
        tiny_grpo.trainer(Chosen, tmp_path, first, sampler=sampler_of(kind), **options).train()
    rest, sampler = tiny_grpo.Odd(), sampler_of(kind)
    resumed = tiny_grpo.trainer(Chosen, tmp_path, rest, sampler=sampler, **options)
    resumed.train(resume_from_checkpoint=True)
    repeated = len(first.rows) + len(rest.rows) - 8  # of a step that the exception left half done
    assert repeated == stop_at % a_step
    assert first.rows + rest.rows[repeated:] == whole.rows
    assert torch.equal(sampler.memory.visits, whole_sampler.memory.visits)
    assert tiny_grpo.curve(resumed)["loss"] == tiny_grpo.curve(uninterrupted)["loss"]


def test_checkpoint_within_a_generation(tmp_path):
    """Two updates a generation, stopped between them: it is made anew for its prompts, and no other is moved."""
    options = {"num_iterations": 2, "max_steps": 8}
    whole = tiny_grpo.Odd()
    tiny_grpo.trainer(Chosen, tmp_path, whole, sampler=sampler_of("OnlineImportance"), **options).train()
    saved = tiny_grpo.trainer(
        Chosen, tmp_path, sampler=sampler_of("OnlineImportance"), save_strategy="steps", save_steps=3, **options
    )
    saved.train()
    rest = tiny_grpo.Odd()
    resumed = tiny_grpo.trainer(Chosen, tmp_path, rest, sampler=sampler_of("OnlineImportance"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert rest.rows[0] == whole.rows[1] and len(rest.rows) == 3
    assert resumed.sampler.memory.visits.sum() == 8


def test_prompts_of_two_ranks(tmp_path):
    """Every completion of a prompt on one rank, and both samplers told of all prompts; also after a resume."""
    script = Path(__file__).with_name("grpo_ranks.py")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([*command, script, tmp_path], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-4000:]
    ranks = [torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in range(2)]
    for found in ranks:
        assert len(found["whole"]["rows"]) == 5 and found["resumed"]["rows"] == found["whole"]["rows"][3:]
        assert all(rows == [rows[0]] * 4 + [rows[4]] * 4 for rows in found["whole"]["rows"])
        assert found["resumed"]["loss"] == found["whole"]["loss"] == ranks[0]["whole"]["loss"]
        for of_run in found.values():
            assert torch.equal(of_run["importance"], ranks[0]["whole"]["importance"])
    first_epoch = [rows[::4] for found in ranks for rows in found["whole"]["rows"][:2]]
    assert sorted(row for rows in first_epoch for row in rows) == list(range(8))


def test_without_a_sampler_it_is_trls_training(tmp_path):
    results = []
    for kind in (GRPOTrainer, Chosen):
        reward = tiny_grpo.Odd()
        trainer = tiny_grpo.trainer(kind, tmp_path, reward, max_steps=3)
        trainer.train()
        results.append((reward.rows, tiny_grpo.curve(trainer)))
    assert results[0] == results[1]


def test_what_the_sampler_sees_and_weighs(tmp_path):
    """It observes the standard deviation of each prompt's rewards, and its weights multiply the advantages."""
    seen = []

    class Before(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            seen.append({"rows": [x["row"] for x in inputs], "advantages": batch["advantages"].clone()})
            return batch

    class After(PromptSamplerMixin, Before):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            seen[-1]["weighted"] = batch["advantages"]
            return batch

        def _calculate_rewards(self, *args):
            rewards = super()._calculate_rewards(*args)
            self.deviations = [*getattr(self, "deviations", []), rewards[:, 0].view(2, 4).std(1)]
            return rewards

    sampler = sampler_of("OnlineImportance", alpha=0.0)
    trainer = tiny_grpo.trainer(After, tmp_path, max_steps=4, sampler=sampler)
    trainer.train()
    observed = {}
    for batch, deviation in zip(seen, trainer.deviations, strict=True):
        assert torch.equal(batch["weighted"], batch["advantages"])  # the first epoch is an ordinary one
        observed |= dict(zip(batch["rows"][::4], deviation.tolist(), strict=True))
    assert sampler.memory["importance"].tolist() == pytest.approx([observed[row] for row in range(8)])
    seen.clear()
    importance = torch.tensor([observed[row] for row in range(8)])
    importance += 0.1 * importance.mean()
    trainer.args.max_steps = 1
    trainer.train()  # another epoch of the sampler
    share = importance / importance.sum()
    weight = 1 / (8 * share[torch.tensor(seen[0]["rows"])])
    assert seen[0]["advantages"].abs().max() > 0.1
    torch.testing.assert_close(seen[0]["weighted"], weight * seen[0]["advantages"], rtol=1e-5, atol=1e-6)


def test_messages_of_the_trainers(tmp_path):
    with pytest.raises(
        TypeError, match="OneReadMixin: Alone must have GRPOTrainer or RLOOTrainer behind it, got neither"
    ):
        type("Alone", (OneReadMixin,), {})()
    other = ta.samplers.MixedOrder
    how = {"pivot": 0, "by": "loss"}
    for sampler, message in (
        (other(9, batch_size=2, drop_last=True, **how), "be of the training set's length, 8, got 9"),
        (
            other(8, batch_size=4, drop_last=True, **how),
            "have batch_size=2, generation_batch_size / num_generations, got 4",
        ),
        (other(8, batch_size=2, **how), "have drop_last=True, got False"),
        (
            other(8, batch_size=2, drop_last=True, rank=1, num_replicas=2, **how),
            "have rank=0 and num_replicas=1 on every process, got (1, 2)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(f"PromptSamplerMixin: sampler must {message}")):
            tiny_grpo.trainer(Chosen, tmp_path, sampler=sampler)
    message = "PromptSamplerMixin: sampler must be a cross-epoch sampler of torchassay, got list"
    with pytest.raises(TypeError, match=message):
        tiny_grpo.trainer(Chosen, tmp_path, sampler=[1, 2])
    message = "PromptSamplerMixin: ignore_data_skip must be False with a sampler, got True"
    with pytest.raises(ValueError, match=message):
        tiny_grpo.trainer(Chosen, tmp_path, sampler=sampler_of("MixedOrder"), ignore_data_skip=True)
    plain = tiny_grpo.trainer(GRPOTrainer, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    plain.train()
    trainer = tiny_grpo.trainer(Chosen, tmp_path, max_steps=2, sampler=sampler_of("MixedOrder"))
    message = r"checkpoint-1 must hold the sampler's state, torchassay_sampler, as without save_only_model, got none"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=True)


def test_code_in_the_documentation_runs(tmp_path, monkeypatch):
    """Block after block, as a reader would go on."""
    result = doctest.testmod(ours)
    assert result.attempted == 3 and result.failed == 0
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "trl.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 4
    generator = torch.Generator().manual_seed(0)
    names = {"ta": ta, "logits": torch.randn(2, 5, 30, generator=generator)}
    names["tokens"] = torch.randint(30, (2, 5), generator=generator)
    names |= {"model": tiny_grpo.model(), "tokenizer": tiny_grpo.tokenizer(), "reward": tiny_grpo.Odd()}
    names |= {"dataset": tiny_grpo.PROMPTS}
    for block in blocks:
        exec(block, names)
    exact = names["logits"].log_softmax(-1).gather(-1, names["tokens"][..., None])[..., 0]
    torch.testing.assert_close(names["log_probs"], exact)
    assert names["trainer"].state.global_step == 6 and names["sampler"].epoch == 1
    assert len(names["reward"].rows) == 2 + 6
