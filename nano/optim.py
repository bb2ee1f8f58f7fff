"""Muon for the matrices inside, AdamW for everything else.

Muon replaces a matrix's momentum by the nearest orthogonal matrix (a few Newton-Schulz steps), so that all directions
learn equally fast; for a model this small in a budget this short it is worth about twice the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_INSIDE = (
    "attn.qkv",
    "attn.proj",
    "mlp.fc",
    "projector.layers",
    "self_attn.",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    "mlp.experts",
    "mlp.shared_experts",
)


DECAY = 0.02  # of the matrices inside, times the learning rate


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack of matrices [S, m, n], in bf16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if tall else x


class Optimizer:
    """Both optimisers behind one `step`. Learning rates lie on the device, so that a recorded step can be replayed."""

    def __init__(self, model: nn.Module, heads: nn.Module, muon_lr: float = 0.02, adam_lr: float = 2e-3) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        inside = [(n, p) for n, p in named if any(k in n for k in _INSIDE) and p.dim() >= 2]
        chosen = {id(p) for _, p in inside}
        self.rates, self.momentum = (muon_lr, adam_lr), 0.95
        self.groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for name, p in inside:
            # A fused qkv or a stack of experts is several matrices: each is orthogonalised by itself.
            view = (
                p.shape if p.dim() == 3 else (3, p.shape[0] // 3, p.shape[1]) if "attn.qkv" in name else (1, *p.shape)
            )
            self.groups.setdefault(tuple(view[1:]), []).append((p, torch.zeros(view, device=p.device)))
        rest = [p for _, p in named if id(p) not in chosen and p.dim() >= 2]
        plain = [p for _, p in named if id(p) not in chosen and p.dim() < 2]
        self.adam = torch.optim.AdamW(
            [dict(params=rest, weight_decay=0.01), dict(params=plain, weight_decay=0.0), dict(params=list(heads.parameters()), weight_decay=0.0)],
            lr=torch.tensor(adam_lr), betas=(0.9, 0.98), fused=True, capturable=next(model.parameters()).is_cuda,
        )  # fmt: skip
        device = next(model.parameters()).device
        self.muon_rate, self.muon_decay, self.adam_rate, self.heads_rate = (
            torch.zeros((), device=device) for _ in range(4)
        )
        self.set_rate(1.0)

    def set_rate(self, scale: float, heads_only: bool = False, decay: float = DECAY) -> None:
        """The schedule's factor on all learning rates; with `heads_only` the model itself stands still.

        `decay` of the inner matrices is 0 while the decoder has no gradients: it would only shrink.
        """
        self.muon_decay.fill_(decay)
        self.muon_rate.fill_(0.0 if heads_only else self.rates[0] * scale)
        self.adam_rate.fill_(0.0 if heads_only else self.rates[1] * scale)
        self.heads_rate.fill_(self.rates[1] * scale)
        *inner, heads = self.adam.param_groups
        heads["lr"] = self.heads_rate
        for group in inner:
            group["lr"] = self.adam_rate

    @torch.no_grad()
    def step(self) -> None:
        for (m, n), pairs in self.groups.items():
            grads = torch.cat([torch.zeros_like(b) if p.grad is None else p.grad.view_as(b) for p, b in pairs])
            buffers = torch.cat([buffer for _, buffer in pairs]).lerp_(grads, 1 - self.momentum)
            update = orthogonal(grads.lerp(buffers, self.momentum)).float() * max(1, m / n) ** 0.5
            at = 0
            for p, buffer in pairs:
                k = buffer.shape[0]
                buffer.copy_(buffers[at : at + k])
                p.mul_(1 - self.muon_rate * self.muon_decay).sub_(update[at : at + k].view_as(p) * self.muon_rate)
                at += k
        self.adam.step()

    def state_dict(self) -> dict:
        return dict(adam=self.adam.state_dict(), muon=[b for pairs in self.groups.values() for _, b in pairs])

    def load_state_dict(self, state: dict) -> None:
        self.adam.load_state_dict(state["adam"])
        self.set_rate(1.0)
        for (_, b), saved in zip([x for pairs in self.groups.values() for x in pairs], state["muon"]):
            b.copy_(saved)
