"""What a user's type checker sees, for `make types`; an ignore that is not needed is an error there."""

import torch
import torchassay as ta
from torch import Tensor
from typing_extensions import assert_type

logits, target = torch.randn(4, 5), torch.tensor([0, 1, 2, 3])
assert_type(ta.score(logits, target), ta.Scores)
assert_type(ta.score(logits).entropy, Tensor)
assert_type(ta.cross_entropy(logits, target), Tensor)
assert_type(ta.cross_entropy(logits, target, signals=("loss",)), tuple[Tensor, ta.Scores])
assert_type(ta.linear_cross_entropy(logits, torch.eye(5), target), Tensor)
assert_type(ta.log_prob_entropy(logits, target), tuple[Tensor, Tensor])
ta.score(logits, target, temperature="1")  # type: ignore[arg-type]
ta.score(logits, target, temperatur=1.0)  # type: ignore[call-arg]

sampler = ta.samplers.OnlineImportance(4, batch_size=2)
assert_type(len(sampler), int)
sampler.observe(target, ta.score(logits, target, signals=sampler.needs))
sampler.observe(target, logits)  # type: ignore[arg-type]
