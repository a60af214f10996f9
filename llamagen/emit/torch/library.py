"""What generated files are made of besides their blocks, as ordinary functions and classes.

A file gets the source of those that it uses, in the order of this file (place.py). What a model fixes stands behind the
``*`` of a signature: in a file the value is where the parameter was, and branches that it decides are gone.

Shapes: B batch, S new tokens, P past tokens, T = P + S, N heads, K key/value heads, H head_dim, R rotated features,
D hidden, V vocab; x_BNSH is a tensor of shape [B, N, S, H].
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence  # noqa: F401 (blocks name it)
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What every file has its own of.
TIED: dict[str, str] = {}

# Whether a model reads images, gets something of them beside each token, and has layers that attend to them.
IMAGES = BESIDE = CROSS = True

# Whether it keeps keys and values of every token, and states of a fixed size.
KEYS = STATES = True

# Nobody states it for this model: the default of transformers.
INITIALIZER_RANGE = 0.02

KeyValue = tuple[Tensor, Tensor]
Rope = tuple[Tensor, Tensor]
Attend = Callable[..., Tensor]


def init_weights(module: nn.Module, *, biased: bool = False) -> None:
    """Matrices start as N(0, INITIALIZER_RANGE), biases as zero, all else as its class says."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()
    if biased and isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class KVCache:
    """Keys and values of every attention, in the order they run, written in place.

    There is room for `capacity` tokens; a cache that is full doubles.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.capacity = capacity
        self.tokens = self.total = 0
        self.slots: list[Tensor] = []
        self.next = 0
        if CROSS:
            # Of images, for each layer that attends to them.
            self.cross: dict[nn.Module, KeyValue] = {}
        if STATES:
            # What the call now running leaves in the place of other slots.
            self.left: dict[int, Tensor] = {}

    def start(self, S: int) -> int:
        """How many tokens there are before the S of a call that begins."""
        self.total, self.next = self.tokens + S, 0
        return self.tokens

    def finish(self) -> None:
        """The call went well: its tokens count. One that failed can be made again."""
        self.tokens = self.total
        if STATES:
            for i, state in self.left.items():
                self.slots[i] = state

    if STATES:

        def find(self, first: Tensor) -> Tensor:
            """The next state as the call before left it, `first` if there was none."""
            if self.next == len(self.slots):
                self.slots.append(first)
            return self.slots[self.next]

        def leave(self, state: Tensor) -> None:
            """What the next call finds in the place of what `find` gave."""
            self.left[self.next] = state
            self.next += 1

    if KEYS:

        def append(self, k_BKSH: Tensor, v_BKSH: Tensor, keep: int | None = None) -> KeyValue:
            """The keys and values of all tokens, [B, K, T, H]."""
            return self.write(k_BKSH, keep=keep), self.write(v_BKSH, keep=keep)

        def write(self, x_BKSH: Tensor, keep: int | None = None) -> Tensor:
            B, K, S, H = x_BKSH.shape
            T, i = self.total, self.next
            self.next += 1
            if keep is not None:  # the next call gets the last `keep` of them
                present = torch.cat((self.slots[i], x_BKSH), dim=2) if T > S else x_BKSH
                kept = present[:, :, max(present.shape[2] - keep, 0) :]
                # A view would hold all of a long prompt in memory.
                self.slots[i : i + 1] = [kept.clone() if S > 1 else kept]
                return present
            if i == len(self.slots):
                self.slots.append(x_BKSH.new_empty(B, K, max(T, self.capacity), H))
            elif self.slots[i].shape[2] < T:
                self.slots[i] = F.pad(self.slots[i], (0, 0, 0, T))
            self.slots[i][:, :, T - S : T] = x_BKSH
            return self.slots[i][:, :, :T]


def rope_table(
    position_ids: Tensor,
    dtype: torch.dtype | None,
    *,
    dim: int,
    theta: float,
    scaled: Callable[[Tensor, Tensor], Tensor],
    attention_factor: float = 1.0,
) -> Rope:
    """cos and sin of position times frequency, [B, 1, S, H / 2], computed in float32."""
    even = torch.arange(0, dim, 2, dtype=torch.float32, device=position_ids.device)
    frequency = 1.0 / theta ** (even / dim)
    frequency = scaled(frequency, position_ids)
    angle = position_ids[:, None, :, None].float() * frequency
    if dtype is not None:
        angle = torch.cat((angle, angle), dim=-1)
    if attention_factor != 1.0:
        cos = angle.cos() * attention_factor
        sin = angle.sin() * attention_factor
        if dtype is None:
            return cos, sin
        return cos.to(dtype), sin.to(dtype)
    if dtype is None:
        return angle.cos(), angle.sin()
    return angle.cos().to(dtype), angle.sin().to(dtype)


def grid_rope_table(
    device: torch.device, *, rows: int, columns: int, pairs: int, theta: float, extra: int = 0
) -> Rope:
    """cos and sin of the places of a grid, row by row, [1, 1, L, H / 2], computed in float32.

    Half of the pairs turn with the column, half with the row.
    """
    pair = torch.arange(0, pairs, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / theta ** (pair / pairs)
    place = torch.arange(rows * columns, device=device)[:, None]
    row, column = place // columns + 1, place % columns + 1
    angle = torch.cat((column * frequency, row * frequency), dim=-1)
    if extra:
        angle = F.pad(angle, (0, 0, 0, extra))
    return angle.cos()[None, None], angle.sin()[None, None]


def rotate(x_BNSH: Tensor, rope: Rope, *, partial: bool = False) -> Tensor:
    """Rotate the pairs (x[i], x[i + H/2]) by their angles."""
    cos, sin = rope
    if partial:
        x, rest = x_BNSH[..., : cos.shape[-1]], x_BNSH[..., cos.shape[-1] :]
        a, b = x.chunk(2, dim=-1)
        return torch.cat((x * cos + torch.cat((-b, a), dim=-1) * sin, rest), dim=-1)
    a, b = x_BNSH.chunk(2, dim=-1)
    return x_BNSH * cos + torch.cat((-b, a), dim=-1) * sin


def rotate_interleaved(x_BNSH: Tensor, rope: Rope, *, partial: bool = False) -> Tensor:
    """Rotate the pairs (x[2i], x[2i + 1]) by their angles, in float32."""
    cos, sin = rope
    if partial:
        width = 2 * cos.shape[-1]
        a, b = x_BNSH[..., :width].float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        return torch.cat((turned.to(x_BNSH.dtype), x_BNSH[..., width:]), dim=-1)
    a, b = x_BNSH.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return turned.to(x_BNSH.dtype)


def causal_mask(
    S: int, P: int, attention_mask: Tensor | None, device: torch.device, *, bounded: bool = False
) -> Tensor:
    """True where a query may see a key, [B or 1, 1, S, T]: not later than itself, not padding."""
    key = torch.arange(P + S, device=device)
    mask = (key <= key[P:, None])[None, None]
    if bounded:
        if attention_mask is None:
            return mask
        return mask & attention_mask[:, None, None, -key.shape[0] :].bool()
    return mask if attention_mask is None else mask & attention_mask[:, None, None].bool()


def padding_mask(S: int, P: int, attention_mask: Tensor | None, device: torch.device) -> Tensor:
    """True where a key is no padding, [B or 1, 1, S, T]."""
    mask = torch.ones(1, 1, S, P + S, dtype=torch.bool, device=device)
    if attention_mask is None:
        return mask
    return mask & attention_mask[:, None, None, -(P + S) :].bool()


def sliding_causal_mask(
    S: int,
    P: int,
    attention_mask: Tensor | None,
    device: torch.device,
    window: int,
    keep: int | None = None,
) -> Tensor:
    """The causal mask, but only the last `window` keys of a query: itself and those before."""
    if keep is not None:
        P = min(P, keep)  # older keys are gone
    key = torch.arange(P + S, device=device)
    return causal_mask(S, P, attention_mask, device, bounded=keep is not None) & (
        key[P:, None] - key < window
    )


def chunked_causal_mask(
    S: int,
    P: int,
    attention_mask: Tensor | None,
    device: torch.device,
    chunk: int,
    keep: int | None = None,
) -> Tensor:
    """The causal mask, but only keys in the query's block of `chunk` positions."""
    position = torch.arange(P + S, device=device)[None]
    if attention_mask is not None:
        position = attention_mask.cumsum(-1) - 1
    if keep is not None:
        P = min(P, keep)  # older keys are gone
        position = position[:, -(P + S) :]
    block = position // chunk
    same = block[:, None, P:, None] == block[:, None, None, :]
    return causal_mask(S, P, attention_mask, device, bounded=keep is not None) & same


def temperature_table(position_ids: Tensor, scale: float, floor_scale: int) -> Tensor:
    """1 + scale * log(1 + floor((position + 1) / floor_scale)), [B, 1, S, 1], in float32."""
    step = torch.floor((position_ids[:, None, :, None].float() + 1) / floor_scale)
    return torch.log1p(step) * scale + 1.0


def tile_mask(tiles: Tensor, tokens: int, padded: int) -> Tensor:
    """Over the places of all tiles, [images, 1, L, L]: False where both are padding.

    Padding is every place of a tile marked 0, and those after the tokens of the others.
    """
    place = torch.arange(padded, device=tiles.device)
    padding = ((tiles.flatten(0, -2)[..., None] == 0) | (place >= tokens)).flatten(1)
    return ~(padding[:, None, :, None] & padding[:, None, None, :])


def cross_masks(tiles: Tensor, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """True where text sees an image token, [B, 1, S, keys]; 1 for text that sees any, [B, S, 1]."""
    sees = tiles.flatten(2) != 0
    return sees.repeat_interleave(tokens, dim=2)[:, None], sees.any(2, keepdim=True).to(dtype)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, S, N * H] -> [B, N, S, H]"""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def split_by(x: Tensor, shares: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Pieces of the last dimension, each as wide as its share of the sum."""
    width = x.shape[-1] // sum(shares)
    return x.split([width * share for share in shares], dim=-1)


def merge_heads(x_BNSH: Tensor) -> Tensor:
    """[B, N, S, H] -> [B, S, N * H]"""
    return x_BNSH.transpose(1, 2).flatten(2)


def by_heads(attended: Tensor, head_dim: int) -> Tensor:
    """What an implementation of attention returns, [B, S, N, H] or vLLM's [S, N * H] -> [B, N, S, H]"""
    if attended.dim() == 2:
        attended = attended.unflatten(-1, (-1, head_dim))[None]
    return attended.transpose(1, 2)


def each_token(
    experts: Callable[[Tensor, Tensor, Tensor], Tensor],
    x_BSD: Tensor,
    indices: Tensor,
    weights: Tensor,
) -> Tensor:
    """Experts by rows of tokens, which engines that put their own in the place of ours want."""
    x, indices, weights = x_BSD.flatten(0, -2), indices.flatten(0, -2), weights.flatten(0, -2)
    return experts(x, indices, weights).view_as(x_BSD)


def replace_rows(x_BSD: Tensor, rows: Tensor | None, ids_BS: Tensor, id: int) -> Tensor:
    """x, but rows in order where ids == id; there must be as many of both."""
    if rows is None:
        return x_BSD
    y_BSD = x_BSD.clone()
    y_BSD[ids_BS == id] = rows.flatten(0, -2).to(x_BSD.dtype)
    return y_BSD


def first_token(x_BSD: Tensor, attention_mask: Tensor) -> Tensor:
    """The row of the first real token of each text, [B, D]."""
    real = attention_mask[:, -x_BSD.shape[1] :] != 0
    return x_BSD[torch.arange(len(real), device=real.device), real.int().argmax(1)]


def last_token(x_BSD: Tensor, attention_mask: Tensor) -> Tensor:
    """The row of the last real token of each text, [B, D]."""
    S = x_BSD.shape[1]
    real = attention_mask[:, -S:] != 0
    last = S - 1 - real.flip(1).int().argmax(1)
    return x_BSD[torch.arange(len(last), device=last.device), last]


def mean_tokens(x_BSD: Tensor, attention_mask: Tensor) -> Tensor:
    """The mean of the rows of real tokens of each text, [B, D], in float32."""
    real_BS1 = attention_mask[:, -x_BSD.shape[1] :, None] != 0
    total = x_BSD.float().masked_fill(~real_BS1, 0.0).sum(1)
    return (total / real_BS1.sum(1).clamp(min=1)).to(x_BSD.dtype)


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def softcap(x: Tensor, cap: float) -> Tensor:
    """Bounds x to (-cap, cap)."""
    return torch.tanh(x / cap) * cap


def limit_groups(
    scores: Tensor, groups: int, kept: int, best: int, fill: float = -math.inf
) -> Tensor:
    """Scores outside of the `kept` groups, by the sum of their `best` scores, become `fill`."""
    grouped = scores.unflatten(-1, (groups, -1))
    of_groups = grouped.topk(best).values.sum(-1)
    allowed = torch.zeros_like(of_groups).scatter(-1, of_groups.topk(kept).indices, 1.0) > 0
    return grouped.masked_fill(~allowed[..., None], fill).flatten(-2)


def alibi_slopes(heads: int) -> list[float]:
    """How much each head's scores fall per token of distance (arXiv 2108.12409)."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * h / power) for h in range(1, power + 1)]
    slopes += [2.0 ** (-4 * h / power) for h in range(1, 2 * power, 2)]
    return slopes[:heads]


def sdpa(
    q_BNSH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    grouped: bool = True,
    causal: bool = True,
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v, [B, N, S, H], in one fused kernel."""
    if grouped:
        B, N, S, H = q_BNSH.shape
        # One token's queries of a group are the rows of one product, which reads k and v once.
        # In float32 without a mask torch's own order of sums is kept: transformers has that one.
        if S == 1 and (mask is not None or q_BNSH.dtype != torch.float32):
            q_BKRH = q_BNSH.reshape(B, k_BKTH.shape[1], -1, H)
            y_BKRH = F.scaled_dot_product_attention(q_BKRH, k_BKTH, v_BKTH, mask, scale=scale)
            return y_BKRH.reshape(B, N, S, -1)  # some kernels give it transposed
    elif causal:
        S = q_BNSH.shape[2]
    return F.scaled_dot_product_attention(
        q_BNSH,
        k_BKTH,
        v_BKTH,
        mask,
        is_causal=causal and S > 1 and mask is None,
        scale=scale,
        enable_gqa=grouped,
    )


def eager(
    q_BNSH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    mask: Tensor | None,
    *,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Tensor | None = None,
    slopes: list[float] | None = None,
    grouped: bool = True,
) -> Tensor:
    """softmax(q k^T / sqrt(H)) v, [B, N, S, H], spelled out; softmax in float32."""
    if grouped:
        group = q_BNSH.shape[1] // k_BKTH.shape[1]
        k_BNTH = k_BKTH.repeat_interleave(group, dim=1)
        v_BNTH = v_BKTH.repeat_interleave(group, dim=1)
    score_BNST = (
        q_BNSH
        @ (k_BNTH if grouped else k_BKTH).mT
        * (q_BNSH.shape[-1] ** -0.5 if scale is None else scale)
    )
    if cap is not None:
        score_BNST = torch.tanh(score_BNST / cap) * cap
    if slopes is not None:
        key = torch.arange(k_BKTH.shape[2], device=k_BKTH.device)
        distance_ST = key[-q_BNSH.shape[2] :, None] - key
        slope_N11 = torch.tensor(slopes, dtype=torch.float32, device=key.device)[:, None, None]
        score_BNST = score_BNST - slope_N11 * distance_ST
    if mask is not None:
        # Finite, in the float32 of the softmax too: a row of padding sees nothing.
        least = max(torch.finfo(score_BNST.dtype).min, torch.finfo(torch.float32).min)
        score_BNST = score_BNST.masked_fill(~mask, least)
    if sinks is not None:
        sinks_BNS1 = sinks[:, None, None].expand(*score_BNST.shape[:-1], 1)
        score_BNST = torch.cat((score_BNST, sinks_BNS1.to(score_BNST.dtype)), dim=-1)
    weight_BNST = score_BNST.softmax(dim=-1, dtype=torch.float32).to(q_BNSH.dtype)
    if sinks is not None:
        weight_BNST = weight_BNST[..., : k_BKTH.shape[2]]
    return weight_BNST @ (v_BNTH if grouped else v_BKTH)


ATTENTION: dict[str, Attend] = {"sdpa": sdpa, "eager": eager}


def full_attention(
    q_BNSH: Tensor,
    k_BKTH: Tensor,
    v_BKTH: Tensor,
    *,
    scale: float | None = None,
    grouped: bool = True,
) -> Tensor:
    """Attention to every key, [B, N, S, H]."""
    return F.scaled_dot_product_attention(q_BNSH, k_BKTH, v_BKTH, scale=scale, enable_gqa=grouped)


def linear_attention(
    q_BNSH: Tensor,
    k_BKSH: Tensor,
    v_BKSV: Tensor,
    attention_mask: Tensor,
    cache: KVCache | None,
    scale: float,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
) -> Tensor:
    """What each token reads of its heads' states, [B, N, S, V], token by token, in float32.

    A token writes its value under its key into a state [H, V]. Padding is passed over.
    """
    S, K = k_BKSH.shape[2], k_BKSH.shape[1]
    padding = attention_mask[:, None, -S:, None] == 0
    q = q_BNSH.float().unflatten(1, (K, -1)) * scale
    k, v = k_BKSH.float().masked_fill(padding, 0.0), v_BKSV.float()
    state = k.new_zeros(k.shape[0], K, k.shape[3], v.shape[3])
    if cache is not None:
        state = cache.find(state)
    if decay is not None:
        kept = decay.float().masked_fill(padding, 0.0).exp()
    read: list[Tensor] = []
    for t in range(S):
        new = v[:, :, t, None]
        if decay is not None:
            state = state * kept[:, :, t, :, None]
        if beta is not None:
            new = (new - k[:, :, t, None] @ state) * beta[:, :, t, :, None].float()
        state = state + k[:, :, t, :, None] * new
        read.append(q[:, :, :, t] @ state)
    if cache is not None:
        cache.leave(state)
    return torch.stack(read, dim=3).flatten(1, 2).to(q_BNSH.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, normalised in float32."""

    def __init__(
        self, features: int, eps: float, *, offset: float = 0.0, late: bool = False
    ) -> None:
        super().__init__()
        self.offset = offset
        self.late = late
        self.weight = nn.Parameter(torch.empty(features))
        self.eps = eps
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.0 if self.offset else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.late and self.offset:
            return ((self.offset + self.weight.float()) * y).to(x.dtype)
        if self.late:
            return (self.weight * y).to(x.dtype)
        if self.offset:
            return (self.offset + self.weight) * y.to(x.dtype)
        return self.weight * y.to(x.dtype)


class CausalConv1d(nn.Module):
    """Each feature's last K inputs, this token's among them, times its K weights, [B, S, D].

    Padding is passed over.
    """

    def __init__(self, features: int, kernel: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, 1, kernel))
        self.bias = nn.Parameter(torch.empty(features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=INITIALIZER_RANGE)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_BSD: Tensor, attention_mask: Tensor, cache: KVCache | None) -> Tensor:
        B, S, D = x_BSD.shape
        K = self.weight.shape[2]
        real_BS = attention_mask[:, -S:] != 0
        order_BS1 = (~real_BS).int().argsort(dim=1, stable=True)[:, :, None]  # real tokens first
        past_BKD = x_BSD.new_zeros(B, K - 1, D)
        if cache is not None:
            past_BKD = cache.find(past_BKD.mT).mT
        seen = torch.cat((past_BKD, x_BSD.take_along_dim(order_BS1, 1)), dim=1)
        if cache is not None:
            last = real_BS.sum(1, keepdim=True) + torch.arange(K - 1, device=x_BSD.device)
            cache.leave(seen.take_along_dim(last[:, :, None], 1).mT)
        y_BSD = F.conv1d(seen.mT, self.weight, self.bias, groups=D).mT
        return y_BSD.take_along_dim(order_BS1.argsort(1), 1)


class Experts(nn.Module):
    """Gated feed-forwards, each run on the tokens that chose it (indices, weights: [B, S, k]).

    The weights of experts that no token chose are not read. torch.compile(fullgraph=True) needs
    torch._dynamo.config.capture_dynamic_output_shape_ops; its graph has every expert.
    """

    def __init__(
        self,
        num_experts: int,
        features: int,
        intermediate: int,
        *,
        act: Callable[[Tensor], Tensor] = F.silu,
        in_out: bool = False,
        scale_input: bool = False,
    ) -> None:
        super().__init__()
        self.act = act
        self.in_out = in_out
        self.scale_input = scale_input
        if in_out:
            self.gate_up_proj = nn.Parameter(torch.empty(num_experts, features, 2 * intermediate))
            self.down_proj = nn.Parameter(torch.empty(num_experts, intermediate, features))
        else:
            self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * intermediate, features))
            self.down_proj = nn.Parameter(torch.empty(num_experts, features, intermediate))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.gate_up_proj, std=INITIALIZER_RANGE)
        nn.init.normal_(self.down_proj, std=INITIALIZER_RANGE)

    def forward(self, x_BSD: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        x, indices, weights = x_BSD.flatten(0, -2), indices.flatten(0, -2), weights.flatten(0, -2)
        y = torch.zeros_like(x)
        gate_ups, downs = self.gate_up_proj.unbind(), self.down_proj.unbind()
        every = range(len(downs))
        for expert in every if torch.compiler.is_compiling() else indices.unique().tolist():
            gate_up, down = gate_ups[expert], downs[expert]
            token, choice = torch.where(indices == expert)
            weight = weights[token, choice, None]
            if self.in_out:
                gate, up = ((x[token] * weight if self.scale_input else x[token]) @ gate_up).chunk(
                    2, dim=-1
                )
                h = (self.act(gate) * up) @ down
            else:
                gate, up = F.linear(
                    x[token] * weight if self.scale_input else x[token], gate_up
                ).chunk(2, dim=-1)
                h = F.linear(self.act(gate) * up, down)
            y.index_add_(0, token, (h if self.scale_input else h * weight).to(y.dtype))
        return y.view_as(x_BSD)


class Model(nn.Module):
    """What the class of a model has besides its parts, its forward and what it ties."""

    def tie(self) -> None:
        pass

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the next token; labels are ids [B, S], or -100 to leave one out.

        Padding is left out by its labels alone.
        """
        logits = self(input_ids, attention_mask=attention_mask, images=images, beside=beside)
        next_ids = F.pad(labels[:, 1:], (0, 1), value=-100)
        return F.cross_entropy(logits.flatten(0, 1).float(), next_ids.flatten())

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 32,
        eos_ids: Collection[int] = (),
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        images: Tensor | None = None,
        beside: Tensor | None = None,
    ) -> Tensor:
        """input_ids [B, S], padded on the left where attention_mask is 0 -> [B, S + new tokens].

        Greedy at temperature 0. A row that has ended repeats its last token.
        """
        if attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError("pad on the left: attention_mask ends in zeros")
        ids, new, cache = input_ids, input_ids, KVCache(input_ids.shape[1] + max_new_tokens)
        ended = torch.zeros_like(ids[:, :1], dtype=torch.bool)
        eos = torch.tensor(list(eos_ids), dtype=ids.dtype, device=ids.device)
        for _ in range(max_new_tokens):
            logits = self(
                new,
                attention_mask=attention_mask,
                cache=cache,
                logits_to_keep=1,
                images=images,
                beside=beside,
            )
            new = sample(logits[:, -1].float(), temperature, top_k, top_p)
            new = torch.where(ended, ids[:, -1:], new)
            ids = torch.cat((ids, new), dim=1)
            if attention_mask is not None:
                attention_mask = F.pad(attention_mask, (0, 1), value=1)
            ended = ended | torch.isin(new, eos)
            if eos_ids and ended.all():
                break
            if IMAGES:
                images = None  # the cache has what comes of them
            if BESIDE and beside is not None:
                # A new token sees what the last one did.
                beside = beside[:, -1:]
        return ids

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        attention: str = "sdpa",
    ) -> Self:
        """The model with the weights of a Hugging Face folder, in the dtype of its files for None.

        Raises RuntimeError naming every tensor that is missing, unexpected or does not fit.
        """
        from safetensors.torch import load_file

        files = {"model.safetensors"}
        index = Path(folder) / "model.safetensors.index.json"
        if index.exists():
            files = set(json.loads(index.read_text())["weight_map"].values())
        state: dict[str, Tensor] = {}
        for file in sorted(files):
            path = Path(folder) / Path(file).name  # nothing outside of the folder is read
            for name, tensor in load_file(path, device=str(device)).items():
                if "rotary_emb" not in name:
                    state[name] = tensor
        if TIED:
            state |= {name: state[source] for name, source in TIED.items() if source in state}
        with torch.device("meta"):
            model = cls(attention)
        model.load_state_dict(state, assign=True)
        if TIED:
            model.tie()
        return model.to(dtype).eval()


def positions(input_ids: Tensor, attention_mask: Tensor | None, P: int) -> Tensor:
    """The place of every new token in its row, padding not counted, [B or 1, S]."""
    S = input_ids.shape[1]
    if attention_mask is None:
        return torch.arange(P, P + S, device=input_ids.device)[None]
    return (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -S:]


def sample(logits_BV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """One id a row, [B, 1]: the likeliest at temperature 0, else drawn from the top_k and top_p."""
    if temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    value, index = (logits_BV / temperature).sort(descending=True)
    p = value.softmax(-1)
    dropped = p.cumsum(-1) - p >= top_p
    if top_k:
        dropped[:, top_k:] = True
    choice = torch.multinomial(p.masked_fill(dropped, 0.0), 1)
    return index.gather(-1, choice)
