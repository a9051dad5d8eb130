"""``DatasetScorer``: a model and what is to be known of each row, as a function of batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from torchassay import checks
from torchassay.functional import score
from torchassay.linear import linear_score
from torchassay.samplers.forwards import evaluating
from torchassay.scores import LINEAR_SIGNALS, NOISY_SIGNALS, TARGET_SIGNALS, Scores
from torchassay.scoring import language_models, models
from torchassay.scoring.batches import IGNORED, TARGETS, TOKENS, BrokenRows, row_ids, tensors

if TYPE_CHECKING:
    import pyarrow

INPUTS = (TOKENS, "x", "input", "inputs")
SIGNALS = tuple(name for name in LINEAR_SIGNALS if name not in NOISY_SIGNALS)
_SELF = "DatasetScorer"


class Scored(NamedTuple):
    """The scores of a batch, and whose they are."""

    scores: Scores  # [B], or [K] of tokens, row after row
    probs: Tensor | None = None  # [B, C]
    counts: Tensor | None = None  # [B], how many of the K tokens are each row's; None: the scores are of rows
    positions: Tensor | None = None  # [K], where in its row the token stands that was to be predicted
    tokens: Tensor | None = None  # [K], which it is


class DatasetScorer:
    """Scores batches of a data set: what `torchassay score` calls, and Ray Data's ``map_batches`` can.

    Args:
        model: a module, a callable without arguments that makes one, or the name of either: "package.module:name" or
            "path.py:name", so that each process can make its own. A module is used as it is, in eval mode during a
            call, or copied if it is to have another device or dtype.
        signals: names among `torchassay.LINEAR_SIGNALS`, those of noise left out; weight_grad_norm needs a causal
            LM with a linear head.
        tokens: of a model that gives logits for every token, also give each token's scores.
        probs: of a model that gives logits for a row, also give its class probabilities.
        device: default: where a module is; else the GPU (of torchrun's LOCAL_RANK), if there is one, or the CPU.
        dtype: "float32", "bfloat16", "float16" or "float64": of the model's parameters. Default: as they are.

    A batch is a dict of columns of B rows: arrays, tensors, or lists of a value a row. ``index`` holds the rows' ids.
    The model is given the columns that its ``forward`` has arguments for, by name, or else the first of input_ids, x,
    input and inputs. The target is the first of labels, label, target, targets and y. Rows of ``input_ids`` may differ
    in length: they are padded on the right, and padding never counts.

    What comes back is a pyarrow Table with one row for each of the batch, in its order: ``index``; ``given``, the
    label, where there is one a row; each signal; and ``pred_probs`` (a list of C float32) with ``probs``. Where the
    model gives logits for each token, a signal is the mean over the row's tokens that count (0 without any), ``tokens``
    says how many these are, and ``tokens=True`` adds lists of them: ``token_position`` in the row, ``token_id``, and
    each signal as ``token_loss`` and so on. A row stays a sample, so the scores can be joined to the data by ``index``;
    exploding the lists gives one row a token.

    Where no labels are given, the target of a token is the next one. A causal LM with Hugging Face's ``base_model`` and
    ``get_output_embeddings()`` is stopped before its head, and the logits are never held: see `linear_score`;
    ``final_logit_softcapping`` is honoured. If these parts do not give the model's own logits for some tokens, the
    model's own logits are scored.

    Raises:
        ValueError: an argument out of range, a batch without what the model or a signal needs, or `BrokenRows`: rows
            with missing, odd or misshapen values, labels or tokens out of range, or that the model fails on alone.
        TypeError: a model that makes no module, or gives no logits.
        ImportError: without pyarrow, which `torchassay[io]` brings.

    Example:
        >>> import torch
        >>> from torchassay.scoring import DatasetScorer
        >>> scorer = DatasetScorer(torch.nn.Identity(), ("loss", "margin"))
        >>> table = scorer({"index": [7, 9], "x": [[2.0, 0.0], [0.0, 3.0]], "y": [0, 0]})
        >>> table.column_names, table["index"].to_pylist(), [f"{value:.4f}" for value in table["loss"].to_pylist()]
        (['index', 'given', 'loss', 'margin'], [7, 9], ['0.1269', '3.0486'])
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module] | str,
        signals: Sequence[str] = ("loss", "entropy", "grad_norm"),
        *,
        tokens: bool = False,
        probs: bool = False,
        device: str | torch.device | None = None,
        dtype: str | None = None,
    ):
        need_pyarrow(_SELF)
        self.signals = (signals,) if isinstance(signals, str) else tuple(signals)
        for name in self.signals:
            if name not in SIGNALS:
                raise checks.InputValueError(f"{_SELF}: signals must be among {', '.join(SIGNALS)}; got {name!r}")
        if not self.signals:
            raise checks.InputValueError(f"{_SELF}: signals must name at least one, got none")
        if dtype is not None and dtype not in models.DTYPES:
            raise checks.InputValueError(f"{_SELF}: dtype must be one of {', '.join(models.DTYPES)}, got {dtype!r}")
        self.tokens, self.probs = tokens, probs
        self.name = model if isinstance(model, str) else getattr(model, "__name__", type(model).__name__)
        self.model = models.placed(models.made(model), isinstance(model, nn.Module), device, dtype)
        values = [*self.model.parameters(), *self.model.buffers()]
        self.device = values[0].device if values else models.device_of(device)
        self.dtype = next((value.dtype for value in values if value.is_floating_point()), torch.get_default_dtype())
        with evaluating(self.model):
            self.parts = language_models.split(self.model)
        self._vocabulary = language_models.vocabulary(self.model)

    def about(self) -> dict:
        """What the scores depend on, but for the data."""
        weights = models.fingerprint(self.model)
        commit = getattr(getattr(self.model, "config", None), "_commit_hash", None)
        return {
            "model": self.name,
            "revision": commit or weights,
            "weights": weights,
            "dtype": checks.dtype_name(self.dtype),
            "device": self.device.type,
            "signals": list(self.signals),
            "tokens": self.tokens,
            "probs": self.probs,
            "head": "logits" if self.parts is None else "linear",
        }

    @torch.inference_mode()
    def __call__(self, batch: Mapping) -> pyarrow.Table:
        index = row_ids(_SELF, batch)
        inputs = self._inputs(batch)
        target = next((name for name in TARGETS if name in batch), None)
        names = [*inputs, *([target] if target else [])]
        columns = tensors(_SELF, batch, names, index)
        if TOKENS in columns and self._vocabulary is not None:
            _in_range(columns[TOKENS], self._vocabulary, TOKENS, index, -1)
        columns = {name: self._placed(column) for name, column in columns.items()}
        labels = columns.pop(target) if target else None
        with evaluating(self.model):
            scored = self._scored(columns, labels, index)
        return self._table(index, labels, scored)

    def _inputs(self, batch: Mapping) -> list[str]:
        offered = [name for name in batch if name != "index" and name not in TARGETS]
        named = list(models.taken(self.model, dict.fromkeys(offered)))
        named = named or [name for name in INPUTS if name in offered][:1]
        if not named:
            got = ", ".join(offered) or "none"
            expected = f"a column that the model's forward names, or {', '.join(INPUTS[:-1])} or {INPUTS[-1]}"
            raise checks.InputValueError(f"{_SELF}: batch must have {expected}, got {got}")
        return named

    def _placed(self, column: Tensor) -> Tensor:
        return column.to(self.device, self.dtype if column.is_floating_point() else None)

    def _scored(self, inputs: dict[str, Tensor], target: Tensor | None, index: np.ndarray) -> Scored:
        causal = self.parts is not None and TOKENS in inputs and (target is None or target.dim() == 2)
        if causal:
            found = self._tried(self.parts.hidden, inputs, index)
            classes = len(self.parts.head.weight)
        else:
            found = self._tried(self._logits, inputs, index)
            classes = found.shape[-1]
        if target is not None and not target.is_floating_point():
            _in_range(target, classes, "the target", index, IGNORED)
        if found.dim() == 2:
            return self._of_rows(found, target, inputs)
        if self.probs:
            raise checks.InputValueError(f"{_SELF}: probs must be off where the model gives logits for every token")
        if "prediction" in self.signals and not self.tokens:
            raise checks.InputValueError(f"{_SELF}: signal 'prediction' of tokens has no mean: it needs tokens=True")
        mask = inputs.get("attention_mask", torch.ones(found.shape[:2], device=found.device)) > 0
        positions = torch.arange(found.shape[1], device=found.device).expand(found.shape[:2])
        if TOKENS in inputs and (causal or language_models.shifts(self.model)):
            target = inputs[TOKENS] if target is None else target
            found, target, positions, mask = found[:, :-1], target[:, 1:], positions[:, 1:], mask[:, 1:] & mask[:, :-1]
        if target is not None:
            mask = mask & (target != IGNORED)
        self._need(target, inputs)
        tokens = None if target is None else target[mask]
        if causal:
            head, softcap = self.parts.head, self.parts.softcap
            how: dict[str, Any] = {"linear_bias": getattr(head, "bias", None), "softcap": softcap}
            scores = linear_score(found[mask], head.weight, tokens, signals=self.signals, **how)
        else:
            scores = score(found[mask], tokens, signals=self._of_logits())
        return Scored(scores, None, mask.sum(1), positions[mask], tokens)

    def _of_rows(self, logits: Tensor, target: Tensor | None, inputs: dict[str, Tensor]) -> Scored:
        if self.tokens:
            raise checks.InputValueError(f"{_SELF}: tokens must be off where the model gives logits for a row")
        self._need(target, inputs)
        probs = logits.float().softmax(-1) if self.probs else None
        return Scored(score(logits, target, signals=self._of_logits()), probs)

    def _need(self, target: Tensor | None, inputs: dict[str, Tensor]) -> None:
        for name in self.signals:
            if target is None and name in TARGET_SIGNALS:
                expected = f"needs a target, a column {', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
                raise checks.InputValueError(f"{_SELF}: signal '{name}' {expected}, got {', '.join(inputs)}")

    def _of_logits(self) -> tuple[str, ...]:
        if "weight_grad_norm" in self.signals:
            expected = "needs a causal LM whose head is linear"
            raise checks.InputValueError(f"{_SELF}: signal 'weight_grad_norm' {expected}, got {self.name}")
        return self.signals

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        by_name = models.taken(self.model, inputs)
        if not by_name:
            return self.model(*inputs.values())
        return self.model(**by_name, **models.uncached(self.model))

    def _tried(self, call: Callable, inputs: dict[str, Tensor], index: np.ndarray) -> Tensor:
        """What the model gives; where it fails, each row alone says whether it is the cause."""
        try:
            found = call(inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the model is the user's: anything may happen in it
            reasons = {}
            for row, number in enumerate(index.tolist()):
                try:
                    call({name: column[row : row + 1] for name, column in inputs.items()})
                except Exception as alone:
                    reasons[number] = f"must be one that the model takes, got {_first_line(alone)}"
            if 0 < len(reasons) < max(len(index), 2):
                raise BrokenRows.of(_SELF, reasons) from error
            columns = " and ".join(f"{name} {tuple(column.shape)}" for name, column in inputs.items())
            message = f"{_SELF}: model must take {columns}, got {_first_line(error)}"
            raise checks.InputValueError(message) from error
        return _checked(found, len(index))

    def _table(self, index: np.ndarray, target: Tensor | None, scored: Scored) -> pyarrow.Table:
        import pyarrow

        columns: dict = {"index": index}
        if target is not None and target.dim() == 1:
            columns["given"] = target.cpu().numpy()
        values = {name: value.cpu().numpy() for name, value in scored.scores.as_dict().items()}
        if scored.counts is None:
            columns |= values
        else:
            counts = scored.counts.cpu().numpy()
            row = np.repeat(np.arange(len(index)), counts)
            for name, value in values.items():
                if name != "prediction":  # in float64 and in order, whatever the device
                    total = np.bincount(row, value, len(index))
                    columns[name] = (total / np.maximum(counts, 1)).astype(value.dtype)
            columns["tokens"] = counts.astype(np.int32)
        if self.tokens:
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            lists = {"position": scored.positions.cpu().numpy().astype(np.int32)}
            if scored.tokens is not None:
                lists["id"] = scored.tokens.cpu().numpy().astype(np.int32)
            for name, value in (lists | values).items():
                columns[f"token_{name}"] = pyarrow.ListArray.from_arrays(offsets, value)
        if scored.probs is not None:
            flat = scored.probs.cpu().numpy().reshape(-1)
            columns["pred_probs"] = pyarrow.FixedSizeListArray.from_arrays(flat, scored.probs.shape[1])
        return pyarrow.table(columns)


def need_pyarrow(function: str) -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise ImportError(f'{function} needs pyarrow: pip install "torchassay[io]"') from None


def _checked(found: Any, rows: int) -> Tensor:
    """The logits in what a model gave: a tensor, or an output or dict with ``logits``."""
    given = found
    if not isinstance(found, Tensor):
        found = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", None)
    if not isinstance(found, Tensor):
        fields = f" with {', '.join(given)}" if isinstance(given, Mapping) and given else ""
        got = f"{type(given).__name__}{fields}"
        raise checks.InputTypeError(f"{_SELF}: model must give logits, or an output with .logits, got {got}")
    fits = found.dtype in checks.FLOATS and found.dim() in (2, 3) and len(found) == rows and 0 not in found.shape[2:]
    if not fits:
        expected = f"logits of shape ({rows}, C) or ({rows}, T, C) for {rows} rows"
        got = f"{checks.dtype_name(found.dtype)} of shape {tuple(found.shape)}"
        raise checks.InputTypeError(f"{_SELF}: model must give {expected}, got {got}")
    return found


def _in_range(values: Tensor, end: int, what: str, index: np.ndarray, ignored: int) -> None:
    """Every row's values are in [0, end), or ``ignored``."""
    outside = ((values < 0) | (values >= end)) & (values != ignored)
    if outside.any():
        reasons = {}
        for row in outside.reshape(len(values), -1).any(1).nonzero()[:, 0].tolist():
            got = int(values[row][outside[row]].reshape(-1)[0])
            reasons[int(index[row])] = f"must hold values in [0, {end}) in {what}, got {got}"
        raise BrokenRows.of(_SELF, reasons)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
