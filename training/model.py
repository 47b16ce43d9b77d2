"""The engine's architecture in PyTorch, with Kyutai's tensor names.

Letters of shapes: B streams, T frames, L latents (25 a second), C channels, D width, K codebooks.
What the engine computes step by step is computed here for a whole stream at once; masks and padding
are what its rings and memories amount to.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.shape import FRAME_SAMPLES, SAMPLE_RATE_HZ, Shape

_COMMITMENT = 0.25
# ELU makes what is about as large as one smaller by this.
_ELU_GAIN = 1.25
# The filter bank: its bands, and how fast its two copies of a band saturate.
_LOWEST_HZ, _HIGHEST_HZ, _BAND_GAIN = 60.0, 7_500.0, 300.0
_LOUDNESS_FACTORS = (2.0, 0.15)
_FILTER_BANK_LAYERS = 4
# A batch is a few streams in as many noises: only many batches have the mean of all.
_NORM_MOMENTUM = 0.01
# Moving averages of the codebooks, as in Mimi.
_DECAY = 0.99
_LEAST_USAGE = 0.05


class Conv(nn.Module):
    """A causal convolution, `conv.conv.{weight,bias}`, as matrix products. B × time × C."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        if stride != 1 and kernel != 2 * stride:
            raise ValueError(f"a kernel of {kernel} is not twice its stride, {stride}")
        self.conv = nn.Module()
        self.conv.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=bias)
        self._kernel, self._stride, self._replicate = kernel, stride, replicate

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.conv.weight, self.conv.conv.bias
        past = self._kernel - self._stride
        before = (
            x[:, :1].expand(-1, past, -1)
            if self._replicate
            else x.new_zeros(len(x), past, x.shape[2])
        )
        x = torch.cat([before, x], 1)
        if self._stride == 1:
            return self._at_every_place(x, weight, bias)
        # Every window is two blocks of a stride each, and every block is in two windows.
        blocks = x.reshape(len(x), -1, self._stride * x.shape[2])
        left, right = weight.transpose(1, 2).unflatten(1, (2, self._stride)).unbind(1)
        return F.linear(blocks[:, :-1], left.flatten(1)) + F.linear(
            blocks[:, 1:], right.flatten(1), bias
        )

    def _at_every_place(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Windows overlap, and unfolding copies them: so one window makes several outputs, with a
        # weight for each of them that is moved by one.
        outputs, _, kernel = weight.shape
        places = 12 if (x.shape[1] - kernel + 1) % 12 == 0 else 1
        moved = [F.pad(weight, (place, places - 1 - place)) for place in range(places)]
        windows = x.unfold(1, kernel + places - 1, places)  # B × time / places × C × window
        y = F.linear(windows.flatten(2), torch.cat(moved).flatten(1))
        y = y.reshape(len(x), -1, outputs)
        return y if bias is None else y + bias


def encoder(codec: SimpleNamespace) -> nn.ModuleList:
    """SEANet (arXiv:2009.02095) without residual blocks; activations count too."""
    if codec.n_residual_layers != 0:
        raise ValueError(f"n_residual_layers = {codec.n_residual_layers}: this recipe has none")
    channels = codec.n_filters
    layers: list[nn.Module] = [Conv(1, channels, codec.kernel_size)]
    for ratio in reversed(codec.ratios):
        layers += [nn.ELU(), Conv(channels, 2 * channels, 2 * ratio, ratio)]
        channels *= 2
    layers += [nn.ELU(), Conv(channels, codec.dimension, codec.last_kernel_size)]
    bands, loudness, *others = [layer.conv.conv for layer in layers if isinstance(layer, Conv)]
    _set_filter_bank(bands, loudness)
    for conv in others:
        _begin(conv)
    return nn.ModuleList(layers)


@torch.no_grad()
def _set_filter_bank(bands: nn.Conv1d, loudness: nn.Conv1d) -> None:
    """Makes the first two convolutions a filter bank, which is not trained.

    Bands spaced as we hear, of which ELU keeps one half of the wave; then each band's mean over
    five milliseconds, twice with its sign changed: exp(-a x) - 1, which is what ELU makes of that,
    saturates as loudness does, for a quiet range and for a loud one.
    """
    outputs, _, kernel = bands.weight.shape
    window = torch.hann_window(kernel + 2, periodic=False)[1:-1]
    bands_hz = mel_to_hz(torch.linspace(mel(_LOWEST_HZ), mel(_HIGHEST_HZ), outputs))[:, None]
    waves = torch.cos(2 * math.pi * bands_hz / SAMPLE_RATE_HZ * (torch.arange(kernel) - kernel / 2))
    waves = waves * window
    waves = waves - window * waves.sum(1, keepdim=True) / window.sum()
    # A sine of the band's own frequency comes through so much louder, far from where ELU is
    # straight. Speech has less in high bands.
    gains = _BAND_GAIN * 2 / window.sum() * (bands_hz / 500).clamp(min=1).sqrt()
    bands.weight.copy_((gains * waves)[:, None])
    bands.bias.zero_()
    outputs, inputs, kernel = loudness.weight.shape
    mean = torch.hann_window(kernel + 2, periodic=False)[1:-1]
    mean = mean / mean.sum()
    loudness.weight.zero_()
    loudness.bias.zero_()
    for band in range(inputs):
        for copy, factor in enumerate(_LOUDNESS_FACTORS):
            loudness.weight[len(_LOUDNESS_FACTORS) * band + copy, band] = -factor * mean
    for parameter in (*bands.parameters(), *loudness.parameters()):
        parameter.requires_grad_(False)


def features(loudness: Tensor) -> Tensor:
    """What the filter bank's last layer makes of it; B × time × bands → B × time × C."""
    return torch.stack([F.elu(-a * loudness) for a in _LOUDNESS_FACTORS], -1).flatten(2)


@torch.no_grad()
def _begin(conv: nn.Conv1d) -> None:
    """Weights that keep the size of what comes through ELU."""
    _, inputs, kernel = conv.weight.shape
    nn.init.normal_(conv.weight, std=_ELU_GAIN / math.sqrt(inputs * kernel))
    nn.init.zeros_(conv.bias)


def mel(hz: float) -> float:
    """The mel scale of O'Shaughnessy."""
    return 2595 * math.log10(1 + hz / 700)


def mel_to_hz(mels: Tensor) -> Tensor:
    """The other way round."""
    return 700 * (10 ** (mels / 2595) - 1)


class RmsNorm(nn.Module):
    """ε = 1e-8; `alpha`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.alpha * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-8)


class Scale(nn.Module):
    """`scale`, one number a channel."""

    def __init__(self, width: int, value: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Attention(nn.Module):
    """Self-attention with rotary positions over interleaved pairs."""

    def __init__(self, width: int, heads: int, max_period: float) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) / math.sqrt(width))
        self.out_proj = nn.Linear(width, width, bias=False)
        self._heads = heads
        pairs = torch.arange(0, width // heads, 2) / (width // heads)
        self.register_buffer("_frequencies", max_period**-pairs, persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight).view(batch, length, 3, self._heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        angles = torch.arange(length)[:, None] * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        # Written out: PyTorch's fused attention is slower for streams as short as these.
        scores = _rotated(q, cos, sin) @ _rotated(k, cos, sin).transpose(2, 3)
        scores = scores / math.sqrt(q.shape[3])
        y = scores.masked_fill(~mask, -math.inf).softmax(3).to(v.dtype) @ v
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def ring_mask(length: int, context: int, at_once: int) -> Tensor:
    """Which positions see which, where `at_once` are written to a ring of `context` in one step."""
    positions = torch.arange(length)
    newest = positions // at_once * at_once + at_once - 1
    query, key = positions[:, None], positions[None, :]
    return (key <= query) & (key > newest[:, None] - context)


class CodecLayer(nn.Module):
    """LayerNorm, layer scale, GELU between two plain layers."""

    def __init__(self, codec: SimpleNamespace) -> None:
        super().__init__()
        width = codec.dimension
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-5), nn.LayerNorm(width, 1e-5)
        self.self_attn = Attention(width, codec.num_heads, 10_000.0)
        self.linear1 = nn.Linear(width, codec.dim_feedforward, bias=False)
        self.linear2 = nn.Linear(codec.dim_feedforward, width, bias=False)
        self.layer_scale_1, self.layer_scale_2 = Scale(width, 0.3), Scale(width, 0.3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), mask))
        return x + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x)))))


class LmLayer(nn.Module):
    """RmsNorm and a gated feed-forward block."""

    def __init__(self, transformer: SimpleNamespace) -> None:
        super().__init__()
        width = transformer.d_model
        gated = 11 * width // 4
        if transformer.dim_feedforward != 4 * width:
            gated = 2 * transformer.dim_feedforward // 3
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.self_attn = Attention(width, transformer.num_heads, float(transformer.max_period))
        self.gating = nn.Module()
        self.gating.linear_in = nn.Linear(width, 2 * gated, bias=False)
        self.gating.linear_out = nn.Linear(gated, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x), mask)
        gate, value = self.gating.linear_in(self.norm2(x)).chunk(2, -1)
        return x + self.gating.linear_out(F.silu(gate) * value)


class Layers(nn.Module):
    """`layers.{l}`."""

    def __init__(self, layers: list[nn.Module], context: int, at_once: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._context, self._at_once = context, at_once

    def forward(self, x: Tensor) -> Tensor:
        mask = ring_mask(x.shape[1], self._context, self._at_once)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Codebook(nn.Module):
    """Entries that follow the mean of what they stand for (VQ-VAE, arXiv:1711.00937)."""

    def __init__(self, bins: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("_initialized", torch.zeros(1))
        self.register_buffer("cluster_usage", torch.ones(bins))
        self.register_buffer("embedding_sum", torch.randn(bins, dim))

    @property
    def entries(self) -> Tensor:
        """Of shape bins × dim."""
        return self.embedding_sum / self.cluster_usage.clamp(min=1e-5)[:, None]

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest entry of each row; N × dim → N."""
        entries = self.entries
        return (entries.square().sum(1) / 2 - x @ entries.t()).argmin(-1)

    @torch.no_grad()
    def follow(self, x: Tensor, tokens: Tensor) -> None:
        """Moves the entries towards `x`; one that nobody needs begins anew at one of them."""
        bins = len(self.cluster_usage)
        if not self._initialized:
            chosen = x[torch.randint(len(x), (bins,))]
            self.embedding_sum.copy_(chosen + 1e-3 * torch.randn_like(chosen))
            self.cluster_usage.fill_(1.0)
            self._initialized.fill_(1.0)
            return
        hits = torch.bincount(tokens, minlength=bins).float()
        sums = torch.zeros_like(self.embedding_sum).index_add_(0, tokens, x)
        self.cluster_usage.mul_(_DECAY).add_(hits, alpha=1 - _DECAY)
        self.embedding_sum.mul_(_DECAY).add_(sums, alpha=1 - _DECAY)
        unused = self.cluster_usage < _LEAST_USAGE * len(x) / bins
        if unused.any():
            count = int(unused.sum())
            self.embedding_sum[unused] = x[torch.randint(len(x), (count,))]
            self.cluster_usage[unused] = 1.0


class ResidualQuantizer(nn.Module):
    """`input_proj` and `vq.layers.{k}._codebook`."""

    def __init__(self, codec: SimpleNamespace, levels: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv1d(codec.dimension, codec.quantizer_dim, 1, bias=False)
        nn.init.normal_(self.input_proj.weight, std=1 / math.sqrt(codec.dimension))
        self.vq = nn.Module()
        self.vq.layers = nn.ModuleList()
        for _ in range(levels):
            level = nn.Module()
            level.add_module("_codebook", Codebook(codec.quantizer_bins, codec.quantizer_dim))
            self.vq.layers.append(level)

    @property
    def codebooks(self) -> list[Codebook]:
        """From coarse to fine."""
        return [level.get_submodule("_codebook") for level in self.vq.layers]

    def forward(self, latents: Tensor, *, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        """Quantizes `latents`, B × T × D.

        Returns the sum of the entries of `levels` levels, B × T × dim, which passes its gradient on
        to what it stands for; the commitment loss; tokens, B × T × levels.
        """
        x = F.linear(latents, self.input_proj.weight[..., 0])
        if levels == 0:
            return torch.zeros_like(x), x.new_zeros(()), x.new_zeros((*x.shape[:2], 0)).long()
        residual, tokens, loss = x, [], x.new_zeros(())
        for codebook in self.codebooks[:levels]:
            flat = residual.detach().flatten(0, 1)
            chosen = codebook.nearest(flat)
            if self.training:
                codebook.follow(flat, chosen)
            entry = codebook.entries[chosen].view_as(residual)
            loss = loss + _COMMITMENT * F.mse_loss(residual, entry)
            tokens.append(chosen.view(residual.shape[:2]))
            residual = residual - entry
        return x - residual.detach(), loss, torch.stack(tokens, -1)


class Codec(nn.Module):
    """Audio to tokens: the encoder half of Mimi (arXiv:2410.00037, section 3.3), small."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        codec, self._per_frame = shape.codec, shape.latents_per_frame
        self.encoder = nn.Module()
        self.encoder.model = encoder(codec)
        self.encoder_transformer = nn.Module()
        layers: list[nn.Module] = [CodecLayer(codec) for _ in range(codec.num_layers)]
        self.encoder_transformer.transformer = Layers(layers, codec.context, self._per_frame)
        width = codec.dimension
        trained = [layer.conv.conv for layer in self._trained_layers() if isinstance(layer, Conv)]
        # Part of the convolutions before them as soon as these are finished.
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(conv.out_channels, momentum=_NORM_MOMENTUM) for conv in trained
        )
        self.downsample = nn.Module()
        self.downsample.conv = Conv(
            width, width, 2 * self._per_frame, self._per_frame, bias=False, replicate=True
        )
        nn.init.normal_(self.downsample.conv.conv.conv.weight, std=1 / math.sqrt(4 * width))
        self.quantizer = nn.Module()
        self.quantizer.rvq_first = ResidualQuantizer(codec, 1)
        self.quantizer.rvq_rest = ResidualQuantizer(codec, shape.lm.audio_codebooks - 1)

    def _trained_layers(self) -> nn.ModuleList:
        return self.encoder.model[_FILTER_BANK_LAYERS:]

    def loudness(self, audio: Tensor) -> Tensor:
        """Of each band of the filter bank; B × samples → B × time × bands."""
        if audio.shape[1] % FRAME_SAMPLES != 0:
            raise ValueError(f"{audio.shape[1]} samples are no whole number of frames")
        x = audio[..., None]
        for layer in self.encoder.model[: _FILTER_BANK_LAYERS - 1]:
            x = layer(x)
        return x[..., :: len(_LOUDNESS_FACTORS)] / -_LOUDNESS_FACTORS[0]

    def forward(self, loudness: Tensor) -> Tensor:
        """Latents, from what the filter bank gives; B × time × bands → B × T × D."""
        x, norms = features(loudness), iter(self.norms)
        for layer in self._trained_layers():
            x = layer(x)
            if isinstance(layer, Conv) and self.norms:
                x = next(norms)(x.transpose(1, 2)).transpose(1, 2)
        return self.downsample.conv(self.encoder_transformer.transformer(x))

    @torch.no_grad()
    def finish(self) -> None:
        """Makes it what its file holds: norms in the weights, entries for sums, 16-bit numbers."""
        convolutions = (layer for layer in self._trained_layers() if isinstance(layer, Conv))
        for layer, norm in zip(convolutions, self.norms, strict=True):
            conv, gain = layer.conv.conv, norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.weight *= gain[:, None, None]
            conv.bias.copy_((conv.bias - norm.running_mean) * gain + norm.bias)
        self.norms = nn.ModuleList()
        for codebook in self.codebooks():
            codebook.embedding_sum.copy_(codebook.entries)
            codebook.cluster_usage.fill_(1.0)
        for tensor in self.state_dict().values():
            tensor.copy_(tensor.half())
        self.eval()

    @torch.autocast("cpu", enabled=False)
    def quantize(self, latents: Tensor, *, levels: int) -> tuple[list[Tensor], Tensor, Tensor]:
        """Quantizes `latents`, B × T × D, with `levels` of the K codebooks.

        Returns what the semantic codebook and the acoustic ones say, B × T × dim each; the
        commitment loss; tokens, B × T × levels.
        """
        latents = latents.float()
        semantic, loss, token = self.quantizer.rvq_first(latents, levels=1)
        acoustic, more_loss, tokens = self.quantizer.rvq_rest(latents, levels=levels - 1)
        return [semantic, acoustic], loss + more_loss, torch.cat([token, tokens], -1)

    def project(self, latents: Tensor) -> list[Tensor]:
        """What a quantizer of endless precision would say."""
        parts = (self.quantizer.rvq_first, self.quantizer.rvq_rest)
        return [F.linear(latents, part.input_proj.weight[..., 0]) for part in parts]

    def codebooks(self) -> list[Codebook]:
        """All K."""
        return [*self.quantizer.rvq_first.codebooks, *self.quantizer.rvq_rest.codebooks]


class LanguageModel(nn.Module):
    """Text and VAD from audio tokens and the text before (Delayed Streams, arXiv:2509.08753)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        lm, transformer, heads = shape.lm, shape.transformer, shape.heads
        width = transformer.d_model
        self.text_emb = nn.Embedding(lm.text_in_vocab_size, width)
        self.emb = nn.ModuleList(
            nn.Embedding(lm.audio_vocab_size, width) for _ in range(lm.audio_codebooks)
        )
        for embedding in (self.text_emb, *self.emb):
            nn.init.normal_(embedding.weight, std=0.3)
        self.transformer = Layers(
            [LmLayer(transformer) for _ in range(transformer.num_layers)], transformer.context, 1
        )
        self.out_norm = RmsNorm(width)
        self.text_linear = nn.Linear(width, lm.text_out_vocab_size, bias=False)
        self.extra_heads = nn.ModuleList(
            nn.Linear(width, heads.dim, bias=False) for _ in range(heads.num_heads)
        )

    def embed_audio(self, tokens: Tensor) -> Tensor:
        """B × T × K → B × T × D."""
        return sum(embedding(tokens[..., k]) for k, embedding in enumerate(self.emb))

    def forward(self, audio: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """`audio`: B × T × D, of the frame before; `text`: B × T, the token before.

        Returns logits of the text, B × T × vocabulary, and of the heads, B × T × heads × classes.
        """
        x = self.out_norm(self.transformer(audio + self.text_emb(text)))
        return self.text_linear(x), torch.stack([head(x) for head in self.extra_heads], 2)
