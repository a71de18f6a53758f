"""Events without a step grid: a pyramid of max-pooled states, each point of which says what event it lies in and how
far its ends are (ActionFormer, Zhang et al., 2022, with the max-pool pyramid of TemporalMaxer, Tang et al., 2023).

Against spans read from step scores (`fusion.span_head: steps`) it sees events of one label that touch or overlap as
two, and ends between steps.

Shape letters: B windows, S steps, H width, G points of all levels, L labels, E events of a window.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CENTRE = 1.5
"""A point teaches if it lies within so many strides around the middle of an event (centre sampling)."""
REACH = 4.0
"""Level l answers for ends that are between `REACH * 2**(l - 1)` and `REACH * 2**l` steps away; the first and the last
level also for shorter and longer ones."""
PRIOR = 0.01
"""What a new head believes of each label, so that the many points without an event do not drown the first steps."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (Lin et al., 2017)."""


@dataclass(frozen=True)
class Candidates:
    """What every point says: logits [B, G, L] and the ends [B, G, 2] of its event, in steps from the window's start."""

    logits: Tensor
    ends: Tensor
    mask: Tensor  # [B, G] points over at least one step of the window
    centres: Tensor  # [G] in steps
    strides: Tensor  # [G]


class Pyramid(nn.Module):
    """Heads shared by all levels; each level has its own scale of distances."""

    def __init__(self, width: int, n_labels: int, n_levels: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(n_levels))
        self.classify = Tower(width, n_labels, dropout)
        self.locate = Tower(width, 2, dropout)
        self.scales = nn.Parameter(torch.ones(n_levels))
        assert self.classify.out.bias is not None
        nn.init.constant_(self.classify.out.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, states: Tensor, step_mask: Tensor) -> Candidates:
        """States [B, S, H] of the steps, mask [B, S]."""
        level, mask = states.transpose(1, 2), step_mask.bool()[:, None]  # [B, H, S], [B, 1, S]
        logits, ends, masks, centres, strides = [], [], [], [], []
        for i, norm in enumerate(self.norms):
            stride = 2**i
            if i:
                level, mask = _halved(level.masked_fill(~mask, -torch.inf)), _halved(mask.float()) > 0
                level = level.masked_fill(~mask, 0.0)
            known = mask.to(level.dtype)
            normed = norm(level.transpose(1, 2)).transpose(1, 2)
            centre = (torch.arange(level.shape[2], device=states.device) + 0.5) * stride
            distances = (
                nn.functional.softplus(self.locate(normed, known) * self.scales[i]) * stride
            )  # [B, 2, S / stride]
            ends.append(torch.stack([centre - distances[:, 0], centre + distances[:, 1]], dim=-1))
            logits.append(self.classify(normed, known).transpose(1, 2))
            masks.append(mask[:, 0])
            centres.append(centre)
            strides.append(torch.full_like(centre, stride))
        return Candidates(
            torch.cat(logits, 1), torch.cat(ends, 1), torch.cat(masks, 1), torch.cat(centres), torch.cat(strides)
        )


def pyramid_loss(found: Candidates, events: Tensor) -> Tensor:
    """Loss [B]: focal loss of the labels and distance-IoU of the ends (Zheng et al., 2020), by positive points.

    `events` [B, E, 3], E at least 1: start and end in steps, index of the label; a negative index is padding.
    """
    matched = _assign(found, events)  # [B, G] index of the event, -1: none
    positive = (matched >= 0) & found.mask
    chosen = events.gather(1, matched.clamp(min=0)[..., None].expand(-1, -1, 3))  # [B, G, 3]
    labels = nn.functional.one_hot(chosen[..., 2].clamp(min=0).long(), found.logits.shape[-1])
    target = labels * positive[..., None]
    focal = _focal(found.logits.float(), target.float()).sum(dim=-1) * found.mask
    located = _distance_iou(found.ends.float(), chosen[..., :2].float()) * positive
    return (focal.sum(dim=1) + located.sum(dim=1)) / positive.sum(dim=1).clamp(min=1)


def _assign(found: Candidates, events: Tensor) -> Tensor:
    """The event [B, G] each point is to find: the shortest it lies in, near its middle, within the level's reach."""
    start, end, known = events[:, None, :, 0], events[:, None, :, 1], events[:, None, :, 2] >= 0  # [B, 1, E]
    centre, stride = found.centres[None, :, None], found.strides[None, :, None]  # [1, G, 1]
    farthest = torch.maximum(centre - start, end - centre)  # [B, G, E]
    low = torch.where(stride == 1, torch.zeros_like(stride), REACH * stride / 2)
    high = torch.where(stride == found.strides.max(), torch.full_like(stride, torch.inf), REACH * stride)
    near = ((centre - (start + end) / 2).abs() <= CENTRE * stride) & (centre > start) & (centre < end)
    fits = known & near & (farthest >= low) & (farthest < high)
    lengths = (end - start).expand_as(fits).masked_fill(~fits, torch.inf)
    shortest, index = lengths.min(dim=2)
    return torch.where(shortest.isfinite(), index, torch.full_like(index, -1))


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    losses = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    missed = torch.where(target > 0, 1 - p, p)
    return torch.where(target > 0, ALPHA, 1 - ALPHA) * missed**GAMMA * losses


def _distance_iou(found: Tensor, true: Tensor) -> Tensor:
    """1 - IoU + squared distance of the middles by the squared length of both together, [...] from [..., 2]."""
    inner = (torch.minimum(found[..., 1], true[..., 1]) - torch.maximum(found[..., 0], true[..., 0])).clamp(min=0)
    lengths = (found[..., 1] - found[..., 0]).clamp(min=0), (true[..., 1] - true[..., 0]).clamp(min=0)
    union = (lengths[0] + lengths[1] - inner).clamp(min=1e-6)
    outer = (torch.maximum(found[..., 1], true[..., 1]) - torch.minimum(found[..., 0], true[..., 0])).clamp(min=1e-6)
    middle = (found.sum(dim=-1) - true.sum(dim=-1)) / 2
    return 1 - inner / union + (middle / outer) ** 2


class Tower(nn.Module):
    """Two convolutions over neighbouring points. Padding is zero at the input of both."""

    def __init__(self, width: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Conv1d(width, width, 3, padding=1), nn.GELU(), nn.Dropout(dropout))
        self.out = nn.Conv1d(width, n_out, 3, padding=1)

    def forward(self, points: Tensor, known: Tensor) -> Tensor:
        """[B, H, G of a level] and mask [B, 1, G] to [B, n_out, G]."""
        values: Tensor = self.out(self.hidden(points * known) * known)
        return values


def _halved(values: Tensor) -> Tensor:
    return nn.functional.max_pool1d(values, 2, stride=2, ceil_mode=True)
