"""A synthetic voice, as no package brings a recording: vowels of a buzzing source, 16,000 samples a second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE = 16_000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""First three formants in Hz of a, i, u, e, o of an adult's voice (Peterson and Barney 1952)."""


def voice(pitch: float, seconds: float, tract: float = 1.0, seed: int = 0) -> Tensor:
    """Waveform [samples] in [-1, 1], a vowel after another, 150 ms each.

    pitch:  in Hz; it drifts by a few percent.
    tract:  scales the formants: above 1 a shorter vocal tract.
    """
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(int(seconds * RATE)) / RATE
    drift = 1 + 0.04 * torch.sin(2 * math.pi * 2.5 * t) + 0.02 * torch.sin(2 * math.pi * 5 * t)
    phase = 2 * math.pi * torch.cumsum(pitch * drift, 0) / RATE
    which = torch.randint(len(VOWELS), (len(t) * 20 // (3 * RATE) + 1,), generator=generator)
    formants = tract * torch.tensor(VOWELS, dtype=torch.float)[which].repeat_interleave(3 * RATE // 20, 0)[: len(t)]
    wave = torch.zeros_like(t)
    for harmonic in range(1, int(4000 / pitch)):
        distance = (harmonic * pitch - formants) / torch.tensor([90.0, 110.0, 170.0])
        loudness = (1 / (1 + distance**2)).sum(-1) / harmonic
        wave += loudness * torch.sin(harmonic * phase)
    return 0.5 * wave / wave.abs().max() + 1e-3 * torch.randn(len(t), generator=generator)


def mel_frames(wave: Tensor, channels: int = 40) -> Tensor:
    """Power in mel bands, [frames, channels]: windows of 25 ms every 10 ms."""
    window, hop = RATE // 40, RATE // 100
    spectrum = torch.stft(wave, window, hop, window=torch.hann_window(window), return_complex=True).abs().square()
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, channels + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, window // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(rising, falling).clamp(min=0) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return (bands @ spectrum).t().contiguous()
