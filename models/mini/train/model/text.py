"""CLIP and T5 text encoders; parameter names of transformers, so a state dict is an export.

Plain attention: masked fused attention crashed in backward on one card."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from model.transformer import split_heads


class ClipAttention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x, bias):
        q, k, v = (split_heads(f(x), self.heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        a = torch.softmax((q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5 + bias, -1).to(v.dtype)
        return self.out_proj((a @ v).transpose(1, 2).flatten(2))


class ClipMLP(nn.Module):
    def __init__(self, d, inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, inner), nn.Linear(inner, d)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class ClipLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.self_attn, self.mlp = (
            ClipAttention(d, c["num_attention_heads"]),
            ClipMLP(d, c["intermediate_size"]),
        )
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(d, eps=c["layer_norm_eps"]) for _ in range(2))

    def forward(self, x, bias):
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class ClipText(nn.Module):
    """Pooled output only. Causal, so padding after the first end token does not change it: short inputs are exact."""

    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.eos = c["eos_token_id"]
        t = self.text_model = nn.Module()
        t.embeddings = nn.Module()
        t.embeddings.token_embedding, t.embeddings.position_embedding = (
            nn.Embedding(c["vocab_size"], d),
            nn.Embedding(c["max_position_embeddings"], d),
        )
        t.encoder = nn.Module()
        t.encoder.layers = nn.ModuleList(ClipLayer(c) for _ in range(c["num_hidden_layers"]))
        t.final_layer_norm = nn.LayerNorm(d, eps=c["layer_norm_eps"])

    def init_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)
            elif isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)
        return self

    def forward(self, ids):
        t = self.text_model
        n = ids.shape[1]
        x = t.embeddings.token_embedding(ids) + t.embeddings.position_embedding.weight[:n]
        bias = torch.full((n, n), -1e30, device=ids.device).triu(1)
        for b in t.encoder.layers:
            x = b(x, bias)
        at = (ids == self.eos).int().argmax(-1)
        x = x.gather(1, at[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
        return t.final_layer_norm(x)


class T5Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x):
        f = x.float()
        return self.weight.float() * (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + 1e-6))


class T5Attention(nn.Module):
    def __init__(self, c, first):
        super().__init__()
        d, inner = c["d_model"], c["d_kv"] * c["num_heads"]
        self.heads = c["num_heads"]
        self.q, self.k, self.v, self.o = (
            nn.Linear(d, inner, False),
            nn.Linear(d, inner, False),
            nn.Linear(d, inner, False),
            nn.Linear(inner, d, False),
        )
        if first:
            self.relative_attention_bias = nn.Embedding(c["relative_attention_num_buckets"], self.heads)

    def forward(self, x, bias):
        q, k, v = (split_heads(f(x), self.heads) for f in (self.q, self.k, self.v))
        a = torch.softmax((q @ k.transpose(2, 3)).float() + bias, -1).to(v.dtype)  # T5 does not scale
        return self.o((a @ v).transpose(1, 2).flatten(2))


class T5Gated(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f = c["d_model"], c["d_ff"]
        self.wi_0, self.wi_1, self.wo = nn.Linear(d, f, False), nn.Linear(d, f, False), nn.Linear(f, d, False)

    def forward(self, x):
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class T5Block(nn.Module):
    def __init__(self, c, first):
        super().__init__()
        a, m = nn.Module(), nn.Module()
        a.SelfAttention, a.layer_norm = T5Attention(c, first), T5Norm(c["d_model"])
        m.DenseReluDense, m.layer_norm = T5Gated(c), T5Norm(c["d_model"])
        self.layer = nn.ModuleList([a, m])

    def forward(self, x, bias):
        a, m = self.layer
        x = x + a.SelfAttention(a.layer_norm(x), bias)
        return x + m.DenseReluDense(m.layer_norm(x))


def t5_buckets(n, num, far):
    rel = torch.arange(n)[None] - torch.arange(n)[:, None]
    half = num // 2
    out = (rel > 0).long() * half
    rel = rel.abs()
    exact = half // 2
    large = exact + (torch.log(rel.float().clamp_min(1) / exact) / math.log(far / exact) * (half - exact)).long()
    return out + torch.where(rel < exact, rel, large.clamp_max(half - 1))


class T5Encoder(nn.Module):
    """No padding mask, as in FLUX: the padding positions are part of the context."""

    def __init__(self, c):
        super().__init__()
        self.shared = nn.Embedding(c["vocab_size"], c["d_model"])
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList(T5Block(c, i == 0) for i in range(c["num_layers"]))
        self.encoder.final_layer_norm = T5Norm(c["d_model"])
        self.cfg = c
        self.register_buffer("buckets", None, persistent=False)

    def init_weights(self):
        c = self.cfg
        d, inner = c["d_model"], c["d_kv"] * c["num_heads"]
        nn.init.normal_(self.shared.weight, std=1.0)
        for b in self.encoder.block:
            a, m = b.layer[0].SelfAttention, b.layer[1].DenseReluDense
            nn.init.normal_(a.q.weight, std=(d * c["d_kv"]) ** -0.5)
            for w in (a.k, a.v, m.wi_0, m.wi_1):
                nn.init.normal_(w.weight, std=d**-0.5)
            nn.init.normal_(a.o.weight, std=inner**-0.5)
            nn.init.normal_(m.wo.weight, std=c["d_ff"] ** -0.5)
        nn.init.normal_(self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=d**-0.5)
        return self

    def forward(self, ids):
        n = ids.shape[1]
        if self.buckets is None or self.buckets.shape[0] != n or self.buckets.device != ids.device:
            self.buckets = t5_buckets(
                n, self.cfg["relative_attention_num_buckets"], self.cfg["relative_attention_max_distance"]
            ).to(ids.device)
        bias = (
            self.encoder.block[0]
            .layer[0]
            .SelfAttention.relative_attention_bias(self.buckets)
            .permute(2, 0, 1)[None]
            .float()
        )
        x = self.shared(ids)
        for b in self.encoder.block:
            x = b(x, bias)
        return self.encoder.final_layer_norm(x)
