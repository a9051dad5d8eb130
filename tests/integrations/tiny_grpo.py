"""A GRPO training small enough for a test, with nothing to download."""

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(30))]
LENGTH = 5  # tokens of every completion
PROMPTS = Dataset.from_list(
    [{"prompt": " ".join(f"w{(5 * i + j) % 30}" for j in range(3)), "row": i} for i in range(8)]
)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(WORDS), num_key_value_heads=1, **sizes, **special))


class Odd:
    """Rewards odd tokens, and keeps which prompts it was asked about; may stop the training."""

    __name__ = "odd"

    def __init__(self, stop_at: int | None = None):
        self.rows, self.stop_at = [], stop_at

    def __call__(self, completion_ids, row, **_) -> list[float]:
        if len(self.rows) == self.stop_at:
            raise KeyboardInterrupt
        self.rows.append(row)
        return [float(sum(token % 2 for token in tokens)) for tokens in completion_ids]


def trainer(kind: type, folder, reward=None, policy=None, config=GRPOConfig, **options):
    sampler = {"sampler": options.pop("sampler")} if "sampler" in options else {}  # TRL's trainers take none
    fixed = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": LENGTH}
    fixed |= {"learning_rate": 0.02, "seed": 3, "logging_steps": 1, "report_to": [], "disable_tqdm": True}
    fixed |= {"use_cpu": True, "bf16": False, "save_strategy": "no"}
    fixed |= {"generation_kwargs": {"min_new_tokens": LENGTH}}
    arguments = config(output_dir=str(folder), **fixed | options)
    return kind(policy or model(), reward or Odd(), arguments, PROMPTS, processing_class=tokenizer(), **sampler)


def curve(trained) -> dict[str, list[float]]:
    """What the trainer logged of every step."""
    logs = [log for log in trained.state.log_history if "loss" in log]
    return {name: [log[name] for log in logs] for name in ("loss", "grad_norm", "entropy")}
