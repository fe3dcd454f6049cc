"""Self-attention over the H·W pixels as tokens: what global filters were first proposed to replace."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from niffbench.case import Case
from niffbench.cost.closed import Cost, layer_cost, product
from niffbench.operators.base import Operator, Option
from niffbench.results import Role

if TYPE_CHECKING:
    from torch import Tensor, nn

HEADS = Option(4, None, "attention heads; they divide the channels")


@dataclass(frozen=True)
class Attention(Operator):
    """Multi-head self-attention as in ViT, by ``F.scaled_dot_product_attention``, without biases or positions.

    ``qkv`` is ``(3 · channels, channels)``, ``projection`` ``(channels_out, channels)``. Its closed form is that
    of a fused kernel, which never stores the H·W × H·W scores and computes them again in backward.
    """

    shortfall: ClassVar[float] = 4.0  # guessed
    role: Role = "attention"
    options: Mapping[str, Option] = field(default_factory=lambda: {"heads": HEADS}, hash=False)

    def refusal(self, case: Case) -> str | None:
        heads, channels = int(case.option("heads")), case.problem.channels
        if heads < 1 or channels % heads:
            return f"heads={heads} do not divide {channels} channels"
        return None

    def equivalence(self, case: Case) -> str:
        return f"attention-heads{case.option('heads')}"

    def cost(self, case: Case) -> Cost:
        p, tokens = case.problem, case.problem.height * case.problem.width
        weights = 3 * p.channels * p.channels + p.channels_out * p.channels
        products = 4 * p.batch * tokens * tokens * p.channels
        parts = {"mixing": product(2 * p.batch * tokens * weights), "attention": (products, products * 5 // 2)}
        return layer_cost(p, parts, weights)

    def build(self, case: Case) -> nn.Module:
        from torch.nn import functional as F

        from niffbench.niff.steps import step
        from niffbench.operators.kit import Weighted, uniform

        p, heads = case.problem, int(case.option("heads"))
        height, width, channels = p.height, p.width, p.channels

        def forward(x: Tensor, qkv: Tensor, projection: Tensor) -> Tensor:
            with step("mixing"):
                mixed = F.linear(x.flatten(2).transpose(1, 2), qkv)
                parts = mixed.view(*mixed.shape[:2], 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
            with step("attention"):
                query, key, value = parts.unbind(0)
                seen = F.scaled_dot_product_attention(query, key, value)
            with step("mixing"):
                out = F.linear(seen.transpose(1, 2).flatten(2), projection)
                return out.transpose(1, 2).view(-1, p.channels_out, height, width)

        return Weighted(
            forward,
            qkv=uniform(3 * channels, channels, fan_in=channels),
            projection=uniform(p.channels_out, channels, fan_in=channels),
        )

    def reference(self, case: Case, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        import torch
        from torch.utils.checkpoint import checkpoint

        heads, channels = int(case.option("heads")), case.problem.channels
        tokens = x.flatten(2)
        query, key, value = (
            (part @ tokens).view(-1, heads, channels // heads, tokens.shape[-1]) for part in state["qkv"].chunk(3)
        )

        def attended(some: Tensor, key: Tensor, value: Tensor) -> Tensor:
            scores = some.T @ key * (channels // heads) ** -0.5
            weights = (scores - scores.amax(1, keepdim=True)).exp()
            result: Tensor = value @ (weights / weights.sum(1, keepdim=True)).T
            return result

        seen: list[Tensor] = []
        rows = max(1, 2**24 // tokens.shape[-1])  # The scores of that many queries are stored at a time.
        for image, head in itertools.product(range(x.shape[0]), range(heads)):
            keyed = key[image, head], value[image, head]
            parts = torch.split(query[image, head], rows, dim=1)
            seen.append(torch.cat([checkpoint(attended, some, *keyed, use_reentrant=False) for some in parts], 1))
        out: Tensor = state["projection"] @ torch.cat(seen).view(x.shape[0], channels, -1)
        return out.view(x.shape[0], -1, *x.shape[-2:])


OPERATORS = (
    Attention(
        name="attention",
        family="attention",
        summary="multi-head self-attention over all pixels",
        boundary="none",
    ),
)
