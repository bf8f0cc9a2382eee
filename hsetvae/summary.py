"""What every variable did over a stay: its statistics, computed from the ragged batch itself.

A sequence model forgets most of them, and a head that sees them needs few stays to use them: they are what makes
gradient boosting strong (`baselines.summary_features` has the same ones, in natural units).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .attention import Dropout
from .config import Config
from .data import Batch

SECOND_DAY = 24.0  # hours
STATISTICS = ("first", "last", "mean", "min", "max", "sd", "second day", "log count")
FAR = 4.0  # SD over the training stays at which a statistic is cut: beyond it lie stays with entry errors
CONSTANT = 1e-3  # SD below which a statistic counts as constant in training, and is not stretched


@torch.no_grad()
def summarise(batch: Batch, variables: int) -> Tensor:
    """Statistics of each of V variables over the sets of a stay -> (B, S, V), in the order of STATISTICS.

    Of standardised values; `second day` is the mean from hour 24 on, `log count` is ln(1 + number of events).
    NaN where a variable was not measured (and its log count 0).  No loop over stays, sets or events.
    """
    B, V, w = len(batch.real), variables, batch.windows
    sets, variable, x = (t[w.real] for t in (w.set, w.variable, w.value))  # (E,)
    cell = batch.row[sets] * V + variable  # (E,) which variable of which stay

    def total(y: Tensor, where: Tensor) -> Tensor:
        return y.new_zeros(B * V).index_add(0, where, y)

    def extreme(y: Tensor, how: str) -> Tensor:
        return y.new_zeros(B * V).scatter_reduce(0, cell, y, how, include_self=False)

    def at(which: Tensor) -> Tensor:  # a variable occurs once in a set
        chosen = sets == which[cell]
        return x.new_zeros(B * V).index_copy(0, cell[chosen], x[chosen])

    count = total(torch.ones_like(x), cell)
    mean = total(x, cell) / count
    sd = (total((x - mean[cell]).square(), cell) / count).sqrt()
    late = batch.hours[batch.row, batch.column][sets] >= SECOND_DAY
    second_day = total(x[late], cell[late]) / total(torch.ones_like(x[late]), cell[late])
    values = [at(extreme(sets, "amin")), at(extreme(sets, "amax")), mean, extreme(x, "amin"), extreme(x, "amax"), sd]
    found = torch.stack([v.masked_fill(count == 0, torch.nan) for v in [*values, second_day]] + [count.log1p()])
    return found.view(len(STATISTICS), B, V).transpose(0, 1)


class Summary(nn.Module):
    """The statistics as the outcome head takes them: in SD over the training stays, 0 where undefined, and presence.

    (B, S, V) -> (B, width).  Mean and SD over the training stays are part of the weights; a share `statistics_dropout`
    of the entries is hidden in training.
    """

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        self.variables, self.width = variables, (len(STATISTICS) + 2) * variables
        self.register_buffer("centre", torch.zeros(len(STATISTICS), variables))
        self.register_buffer("spread", torch.ones(len(STATISTICS), variables))
        self.dropout = Dropout(config.statistics_dropout)

    def fit(self, batches: Iterable[Batch]) -> None:
        """Mean and SD of every statistic over the stays of `batches`."""
        n = total = squares = torch.zeros(self.centre.shape, dtype=torch.float64)
        for batch in batches:
            x = summarise(batch, self.variables).double()
            n = n + (~x.isnan()).sum(0)
            total, squares = total + x.nansum(0), squares + x.square().nansum(0)
        mean = total / n.clamp_min(1)
        sd = (squares / n.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(sd > CONSTANT, sd, 1.0))

    def forward(self, batch: Batch) -> Tensor:
        x = (summarise(batch, self.variables) - self.centre) / self.spread
        seen = ~x[:, [STATISTICS.index("mean"), STATISTICS.index("second day")]].isnan()  # presence, of two kinds
        x = torch.cat([x.clamp(-FAR, FAR).nan_to_num(0), seen.to(x.dtype)], dim=1)
        return self.dropout(x.flatten(1))
